"""The command line: parses, calls a library function, prints. No logic of its own.

    recjax train MODEL [--data SOURCE] [--out DIR] ...     recjax evaluate DIR [--data SOURCE]
    recjax predict DIR --records FILE                      recjax recommend DIR --records FILE
    recjax inspect [--data SOURCE]                         recjax demo
    recjax bench SUITE [--out DIR]                         recjax export DIR --format F --out DIR

Bad input ends with one line on standard error and exit code 2.
"""

import argparse
import dataclasses
import json
from pathlib import Path
import sys
from typing import Any

from . import __version__
from .cli_help import FLAGS, HelpWithOptions, Parser, interrupted_training, unknown_argument


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    options, unknown = _parser().parse_known_args(arguments)
    try:
        if unknown:
            raise ValueError(unknown_argument(unknown[0], options))
        options.command(options)
    except (ValueError, OSError, ArithmeticError, MemoryError) as error:
        if options.debug:
            raise
        _complain(str(error) or "not enough memory")
        return 2
    except RuntimeError as error:
        # What XLA raises where an array does not fit; any other is ours to mend.
        if options.debug or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _complain(f"not enough memory: {str(error).splitlines()[0]}")
        return 2
    except KeyboardInterrupt as stop:
        given = sys.argv[1:] if arguments is None else arguments
        train = options.command is _train
        said = interrupted_training(stop, options, given) if train else "interrupted"
        print(f"recjax: {said}", file=sys.stderr)
        return 130
    return 0


def _complain(message: str) -> None:
    print(f"recjax: error: {' '.join(message.split())}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="recjax", description="Production recommendation models in JAX.")
    parser.add_argument("--version", action="version", version=f"recjax {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a model on a source of data", add_help=False)
    train.add_argument(
        "-h",
        "--help",
        nargs=0,
        action=HelpWithOptions,
        help="show this message; `recjax train MODEL --help` adds every option of the model",
    )
    train.add_argument("model", metavar="MODEL", help="{models}")
    train.add_argument(
        "--data",
        metavar="SOURCE",
        help="{sources}; files may be compressed (default: the world that the model is for)",
    )
    train.add_argument(
        "--evaluator",
        action="append",
        default=[],
        dest="evaluators",
        metavar="DIR",
        help="run of an evaluator that judges a generator; several make an ensemble",
    )
    _add_worth(train)
    train.add_argument("--out", metavar="DIR", help="folder of the run (default: new, in runs/)")
    for name, what in FLAGS.items():
        train.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=what)
    _add_set(train, "any option of the model or setting of the training; may be repeated")
    train.add_argument(
        "--devices",
        type=int,
        default=1,
        metavar="N",
        help="GPUs, or cores of a CPU, that share each batch",
    )
    _add_reading(train)
    train.add_argument("--resume", action="store_true", help="go on with the run in --out")
    train.add_argument(
        "--warm-start",
        metavar="DIR",
        help="run of the same model whose parameters this one begins with",
    )
    train.set_defaults(command=_train)

    evaluate = commands.add_parser("evaluate", help="score a source with a trained run")
    evaluate.add_argument("folder", metavar="DIR", help="folder of a run")
    evaluate.add_argument("--data", metavar="SOURCE", help="another source of the same schema")
    _add_set(evaluate, "evaluation_negatives=uniform, popularity or FILE")
    _add_reading(evaluate)
    evaluate.set_defaults(command=_evaluate)

    predict = commands.add_parser(
        "predict", help="calibrated probabilities of every candidate, a JSON line per record"
    )
    predict.set_defaults(command=_predict)
    recommend = commands.add_parser(
        "recommend", help="the best candidates of every record, a JSON line per record"
    )
    recommend.add_argument("--k", type=int, default=10, metavar="N", help="how many (10)")
    recommend.set_defaults(command=_recommend)
    for command in (predict, recommend):
        command.add_argument("folder", metavar="DIR", help="folder of a run, or of an artifact")
        command.add_argument(
            "--records",
            required=True,
            metavar="FILE",
            help="request records as JSON Lines, JSON or Parquet; - reads standard input",
        )
        command.add_argument(
            "--unknown",
            choices=("error", "ignore"),
            default="error",
            help="what to do with keys that the schema has not",
        )

    inspect = commands.add_parser("inspect", help="hit rates and drift of a source's fields")
    inspect.add_argument("--data", metavar="SOURCE", default="market", help="see train")
    inspect.add_argument("--history", type=int, default=50, metavar="N", help="newest events read")
    _add_set(inspect, "statistics, crosses, leave_out; may be repeated")
    _add_reading(inspect)
    inspect.set_defaults(command=_inspect)

    bench = commands.add_parser("bench", help="run a suite and write results.json")
    bench.add_argument(
        "suite",
        metavar="SUITE",
        help="{suites}",
    )
    bench.add_argument("--out", default="runs/bench", metavar="DIR")
    bench.add_argument("--only", action="append", metavar="CASE", help="may be repeated")
    bench.add_argument("--seeds", type=int, metavar="N", help="how many, where a suite trains")
    bench.set_defaults(command=_bench)

    export = commands.add_parser("export", help="turn a run into an artifact that serves")
    export.add_argument("folder", metavar="DIR", help="folder of a run")
    export.add_argument("--format", choices=("stablehlo",), default="stablehlo")
    export.add_argument("--out", required=True, metavar="DIR", help="folder of the artifact")
    export.add_argument(
        "--evaluator",
        action="append",
        default=[],
        dest="evaluators",
        metavar="DIR",
        help="for generators: a run that judges its slates; the artifact is LAST; may be repeated",
    )
    export.add_argument("--last", metavar="PRESET", help="of LAST: {presets}")
    _add_worth(export)
    for name in ("requests", "candidates"):
        export.add_argument(
            f"--{name}",
            type=int,
            metavar="N",
            help=f"fixed number of {name} in the program, which kernels need (default: any)",
        )
    export.add_argument(
        "--platform",
        action="append",
        choices=("cpu", "cuda", "tpu"),
        dest="platforms",
        help="that the program is made for; may be repeated (default: all three)",
    )
    export.set_defaults(command=_export)

    demo = commands.add_parser("demo", help="mlp against din on the built-in world, in two minutes")
    demo.add_argument("--out", default="runs/demo", metavar="DIR")
    demo.set_defaults(command=_demo)
    return parser


def _add_worth(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--worth",
        type=_worth,
        metavar="N,N",
        help="how much each task of the evaluators counts, in the schema's order; with preferences "
        "one such row for each, split by ; (default: 1,0,..., a click)",
    )


def _worth(text: str) -> tuple[Any, ...]:
    rows = tuple(tuple(float(part) for part in row.split(",")) for row in text.split(";"))
    return rows[0] if len(rows) == 1 else rows


def _add_set(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help=what
    )


def _add_reading(command: argparse.ArgumentParser) -> None:
    """How files are read."""
    command.add_argument(
        "--on-bad-row",
        choices=("stop", "skip"),
        default="stop",
        help="what to do with a line of a file that cannot be read",
    )
    command.add_argument(
        "--columns",
        metavar="FILE",
        help="declaration of the columns (a run's columns.json), or, for text without a header, "
        "their names joined by commas (default: guessed, and said; for a run, its own)",
    )


def _train(options: argparse.Namespace) -> None:
    from . import api
    from .train.options import options_of

    run = api.train(
        options.model,
        data=options.data,
        evaluators=options.evaluators,
        worth=options.worth,
        out=options.out,
        options={
            **{n: getattr(options, n) for n in FLAGS if getattr(options, n) is not None},
            **options_of(options.overrides),
        },
        resume=options.resume,
        warm_start=options.warm_start,
        on_bad_row=options.on_bad_row,
        columns=options.columns,
        devices=options.devices,
    )
    results = run.metrics
    _show({"out": str(run.folder), "train": results["train"], "test": results["test"]})


def _evaluate(options: argparse.Namespace) -> None:
    from . import api
    from .train.options import options_of

    results = api.load(options.folder).evaluate(
        data=options.data,
        options=options_of(options.overrides),
        on_bad_row=options.on_bad_row,
        columns=options.columns,
        quiet=False,
    )
    _show(results)


def _predict(options: argparse.Namespace) -> None:
    from .export.records import read_records

    records = read_records(options.records)
    for one in _answering(options.folder).predict(records, unknown=options.unknown):
        print(json.dumps({task: values.tolist() for task, values in one.items()}))


def _recommend(options: argparse.Namespace) -> None:
    from .export.records import read_records

    records = read_records(options.records)
    for best in _answering(options.folder).recommend(records, options.k, unknown=options.unknown):
        found = [dataclasses.asdict(one) for one in best]
        for one in found:
            one["score"] = None if one["score"] != one["score"] else one["score"]
        print(json.dumps(found, default=str))  # Parquet holds dates, too.


def _answering(folder: str) -> Any:
    """The run, or the artifact, in a folder."""
    from .export import artifact

    if (Path(folder) / artifact.MANIFEST).is_file():
        return artifact.load(folder)
    from . import api

    return api.load(folder)


def _inspect(options: argparse.Namespace) -> None:
    from .train import launch
    from .train.options import options_of

    launch.inspect(
        options.data,
        options=options_of(options.overrides),
        history=options.history,
        on_bad_row=options.on_bad_row,
        columns=options.columns,
    )


def _bench(options: argparse.Namespace) -> None:
    from .bench import suites

    suites.run(options.suite, options.out, only=options.only, seeds=options.seeds)


def _export(options: argparse.Namespace) -> None:
    from .export import stablehlo

    manifest = stablehlo.export_run(
        options.folder,
        options.out,
        evaluators=options.evaluators,
        worth=options.worth,
        preset=options.last,
        requests=options.requests,
        candidates=options.candidates,
        platforms=options.platforms or stablehlo.PLATFORMS,
    )
    _show(manifest)


def _demo(options: argparse.Namespace) -> None:
    from .bench import demo

    demo.run(options.out)


def _show(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=2))
