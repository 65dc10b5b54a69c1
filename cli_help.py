"""Help texts and messages of the command line."""

import argparse
from collections.abc import Sequence
import shlex
import sys
import textwrap
from typing import Any, NoReturn


class _Names(dict[str, str]):
    """Lists of names for help texts, read only when a help text is shown: imports take seconds."""

    def __missing__(self, key: str) -> str:
        from .bench.suites import SUITES
        from .train.data.sources import SOURCES
        from .train.defaults import ALL
        from .zoo.rerank.last import PRESETS

        lists = {"models": ALL, "sources": SOURCES, "suites": SUITES, "presets": PRESETS}
        return ", ".join(lists[key])


class _Help(argparse.HelpFormatter):
    """Help texts in which {models}, {sources}, {suites} and {presets} stand for all of them."""

    def _expand_help(self, action: argparse.Action) -> str:
        return super()._expand_help(action).format_map(_Names())


FLAGS = {
    "epochs": "passes over the training data",
    "steps": "stop after so many steps",
    "batch_size": "labelled candidates per step",
    "history": "newest events of a user that the model sees",
    "max_train_per_user": "newest training targets per user, for logs of events",
    "seed": "of parameters, order, negatives, dropout",
}
"""Options of a training that have a flag of their own."""


class HelpWithOptions(argparse.Action):
    """Shows the help of a command, and every option of the model that was named before it."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any
    ) -> None:
        """Prints and ends."""
        known: list[Any] = []
        if namespace.model is not None:
            from .train.defaults import options_with_defaults

            try:
                known = options_with_defaults(namespace.model)
            except ValueError as error:
                parser.error(str(error))
        parser.print_help()
        if known:
            for of in ("model", "training"):
                print(f"\noptions of the {of} (--set KEY=VALUE):")
                for option in (one for one in known if one.of == of):
                    default = option.default
                    if isinstance(default, tuple):
                        default = ",".join(map(str, default))
                    text = f"{option.meaning} (default: {default if default != '' else 'none'})"
                    print(f"  {option.name}={option.kind}")
                    print(textwrap.indent(textwrap.fill(text.strip(), 88), " " * 8))
        parser.exit()


class Parser(argparse.ArgumentParser):
    """Errors in one line; the usage is a `--help` away."""

    def __init__(self, **options: Any):
        super().__init__(**{"formatter_class": _Help, **options})

    def error(self, message: str) -> NoReturn:
        """Prints one line and ends with exit code 2."""
        print(f"{self.prog}: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def unknown_argument(argument: str, options: argparse.Namespace) -> str:
    """The message for an argument that no command has; an option of a model needs --set."""
    from .train.defaults import ALL
    from .train.options import names_of, nearest
    from .train.settings import Settings

    key = argument.partition("=")[0]
    known = names_of(Settings)
    if getattr(options, "model", None) in ALL:
        known |= names_of(ALL[options.model].Config)
    near = nearest(key, sorted(known)) if key.startswith("--") else None
    if near is None or not hasattr(options, "overrides"):
        return f"unknown argument {argument!r}; see recjax COMMAND --help."
    flag = near.replace("_", "-")
    how = f"--{flag} N" if near in FLAGS else f"--set {near}=..."
    return f"unknown argument {argument!r}; did you mean {how}?"


def interrupted_training(
    stop: KeyboardInterrupt, options: argparse.Namespace, arguments: Sequence[str]
) -> str:
    """What Ctrl-C left of `recjax train`, and the command that goes on with it.

    Resuming wants the same options, so that the command is the one that was given, `arguments`, and
    the folder that it chose.
    """
    step, out = getattr(stop, "step", None), options.out
    if step is None and not options.resume:
        return "interrupted before anything was saved"
    saved = "" if step is None else f" with step {step:,} saved in {stop.folder}"
    again = ["recjax", *arguments]
    again += [] if options.resume else ["--resume"]
    again += [] if out is not None else ["--out", str(stop.folder)]
    return f"interrupted{saved}; to go on: {shlex.join(again)}"
