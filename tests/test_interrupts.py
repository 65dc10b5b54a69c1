"""Ctrl-C on the command line: what is said is true, and the command that is named goes on."""

import json
import os
import shlex
import signal

import pytest

from recjax import cli
from recjax.train import launch, loop

COMMAND = ["train", "lr", "--data", "market:tiny", "--steps", "12", "--set", "batch_size=64"]


def interrupted(capsys, command):
    """The one line that is said last, and the exit code of a shell's interrupted command."""
    assert cli.main(command) == 130
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def after(monkeypatch):
    """Has Ctrl-C come in a step of the training."""

    def after(steps):
        genuine, count = loop._Trainer._step, 0

        def step(*args):
            nonlocal count
            count += 1
            if count == steps:
                os.kill(os.getpid(), signal.SIGINT)
            return genuine(*args)

        monkeypatch.setattr(loop._Trainer, "_step", step)

    return after


@pytest.mark.parametrize("out", [[], ["--out", "my run"]], ids=["chosen folder", "--out"])
def test_training_names_the_command_that_goes_on(tmp_path, monkeypatch, capsys, after, out):
    monkeypatch.chdir(tmp_path)
    folder = out[1] if out else "runs/lr-market-tiny-1"
    after(5)
    said = interrupted(capsys, [*COMMAND, *out])
    start = f"recjax: interrupted with step 5 saved in {folder}; to go on: recjax "
    assert said.startswith(start)
    again = shlex.split(said.removeprefix(start))
    assert "--resume" in again and again.count("--out") == 1
    after(3)
    said = interrupted(capsys, again)  # and once more: the same command
    assert said == start.replace("step 5", "step 8") + shlex.join(again)
    after(-1)
    assert cli.main(again) == 0
    assert cli.main([*COMMAND, "--out", "whole"]) == 0
    metrics = [tmp_path / name / "metrics.json" for name in (folder, "whole")]
    resumed, whole = (json.loads(path.read_text()) for path in metrics)
    assert resumed["test"] == whole["test"]


def test_training_without_a_step_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def interrupt(*args, **options):
        raise KeyboardInterrupt

    said = "recjax: interrupted before anything was saved"
    with monkeypatch.context() as patched:
        patched.setattr(loop._Trainer, "_step", interrupt)
        assert interrupted(capsys, [*COMMAND, "--out", "run"]) == said
    with monkeypatch.context() as patched:
        patched.setattr(launch, "opened", interrupt)  # still reading
        assert interrupted(capsys, [*COMMAND, "--out", "run"]) == said
        # What an earlier process saved is still there.
        again = [*COMMAND, "--out", "run", "--resume"]
        assert (
            interrupted(capsys, again)
            == f"recjax: interrupted; to go on: recjax {shlex.join(again)}"
        )
    assert cli.main([*COMMAND, "--out", "run"]) == 0  # the folder is free


@pytest.mark.parametrize(
    "module, name, command",
    [
        ("recjax.bench.suites", "run", ["bench", "accuracy"]),
        ("recjax.bench.demo", "run", ["demo"]),
        ("recjax.api", "load", ["evaluate", "run"]),
    ],
)
def test_other_commands_promise_nothing(monkeypatch, capsys, module, name, command):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{module}.{name}", interrupt)
    assert cli.main(command) == 130
    assert capsys.readouterr() == ("", "recjax: interrupted\n")
