"""What a job says of itself: how far it is, and how long it will take. By a clock that is given."""

import io
import re

import pytest

from recjax.train import progress as progress_module
from recjax.train.forecast import Forecast
from recjax.train.progress import Progress, in_words


class Clock:
    """Seconds that only a test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def shown(capsys):
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0.2, "1 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (60 * 89, "89 min"),
        (3600 * 1.5, "1 h 30 min"),
        (3600 * 2, "2 h"),
        (3600 * 1000, "1,000 h"),
    ],
)
def test_durations_in_words(seconds, words):
    assert in_words(float(seconds)) == words


def test_a_line_where_nobody_watches(clock, capsys):
    """Each after 30 seconds and a tenth of the steps, whichever is later; by the newest speed."""
    with Progress("din", 1000, clock=clock) as progress:
        clock.now += 500
        progress.advance(10)  # compiles
        for _ in range(29):
            clock.now += 1
            progress.advance(10)
        assert shown(capsys) == []  # 29 s
        clock.now += 1
        progress.advance(10)
        assert shown(capsys) == ["din: 310 of 1,000, 10 a second, about 69 s left"]
        clock.now += 100
        progress.advance(99)
        assert shown(capsys) == []  # 9.9 %
        progress.advance(1)
        assert shown(capsys) == ["din: 410 of 1,000, 1 a second, about 10 min left"]
        clock.now += 1000
        progress.advance(590)
        assert shown(capsys) == []  # what is over is said by what follows


def test_what_an_earlier_process_did_is_no_speed(clock, capsys):
    with Progress("din", 1000, done=500, clock=clock) as progress:
        progress.advance(1)
        clock.now += 50
        progress.advance(100)
    assert shown(capsys) == ["din: 601 of 1,000, 2 a second, about 3 min left"]


def test_quiet_says_nothing(clock, capsys):
    with Progress("din", 10, quiet=True, clock=clock) as progress:
        forecast = Forecast(progress, 100, clock=clock)
        for _ in range(60):
            clock.now += 60
            progress.advance(1)
            forecast.step(lambda: None)
    assert shown(capsys) == []


def test_a_terminal_has_a_bar_and_no_such_lines(clock, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    genuine, screen = progress_module.Console, Terminal()
    monkeypatch.setattr(
        progress_module,
        "Console",
        lambda **options: genuine(file=screen, force_terminal=True, soft_wrap=True),
    )
    with Progress("din", 1000, clock=clock) as progress:
        clock.now += 60
        progress.advance(300)
    assert "300/1000" in screen.getvalue() and "left" not in screen.getvalue()


def forecast_of(clock, capsys, *, seconds, after=0, steps=1000, compiles=(), **more):
    """What is said of a training whose steps take so many seconds, and after how many steps.

    The first three take ten times as long; steps in `compiles` compile for 50 seconds besides.
    """
    progress, compiled = Progress("din", steps, clock=clock), 0.0
    forecast = Forecast(progress, steps, clock=clock, **more)
    lines = []
    for number in range(1, min(steps, 40) + 1):
        clock.now += seconds * (10 if number <= 3 else 1)
        if number in compiles:
            clock.now, compiled = clock.now + 50, compiled + 50
        forecast.step(lambda: None, candidates=30, compiled=compiled)
        lines += [(number, line) for line in shown(capsys)]
    assert len(lines) <= 1
    return lines[0] if lines else (None, "")


def test_the_time_of_all_is_said_after_the_first_steps(clock, capsys):
    step, line = forecast_of(clock, capsys, seconds=0.1)
    assert (step, line) == (23, "din: 1,000 steps: about 2 min in all")
    # Slow steps are not waited for.
    step, line = forecast_of(clock, capsys, seconds=10)
    assert (step, line) == (8, "din: 1,000 steps: about 2 h 47 min in all")


def test_compiling_is_not_training(clock, capsys):
    _, line = forecast_of(clock, capsys, seconds=0.05, compiles=(1, 7, 12))
    assert line == "din: 1,000 steps: about 50 s in all"


def test_epochs_and_scoring_count(clock, capsys):
    """Two epochs and a half; a scored candidate costs a third of one that is trained on."""
    more = {"per_epoch": 400, "epochs": 2.5, "may_stop": True, "validation": 900, "test": 1800}
    _, line = forecast_of(clock, capsys, seconds=1, **more)
    epoch, test = 400 + 900 / 30 / 3, 1800 / 30 / 3
    assert in_words(epoch) == "7 min"
    assert in_words(1000 + 4 * (epoch - 400) + test) == "18 min"
    assert line == (
        "din: 1,000 steps, 3 epochs at most: about 7 min an epoch, about 18 min in all, "
        "scoring included; early stopping may end it sooner"
    )


def test_of_a_short_training_nothing_is_said(clock, capsys):
    assert forecast_of(clock, capsys, seconds=0.1, steps=20) == (None, "")
    assert forecast_of(clock, capsys, seconds=10, steps=8) == (None, "")


@pytest.mark.parametrize("patience, may_stop", [(0, False), (1, True), (3, False)])
def test_early_stopping_is_named_where_it_can_come(clock, capsys, patience, may_stop):
    from recjax.train.settings import Settings

    progress = Progress("din", 3000, clock=clock)
    forecast = Forecast.of(progress, Settings(patience=patience), (), 3000, 0, 1000)
    for _ in range(40):
        forecast.step(lambda: None)
    (line,) = shown(capsys)
    assert re.match(r"din: 3,000 steps, 3 epochs at most: about .* an epoch, about .* in all", line)
    assert ("early stopping" in line) == may_stop and "scoring" not in line
