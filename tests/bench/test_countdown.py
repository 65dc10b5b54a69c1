"""Jobs of many trainings say how many, and after the first how long the others will take."""

import json
import signal
import subprocess
import sys

from recjax.bench.countdown import Countdown, each_seed


def test_trainings_at_once(capsys):
    now = [0.0]
    countdown = Countdown(7, 2, clock=lambda: now[0])
    assert capsys.readouterr().err == "7 trainings, 2 at a time\n"
    now[0] = 120.0
    countdown.done()
    said = "the first took 2 min: about 6 min more if all take as long\n"  # 4 rounds, one is over
    assert capsys.readouterr().err == said
    countdown.done()
    assert capsys.readouterr() == ("", "")


def test_nothing_is_left_after_the_only_ones(capsys):
    Countdown(2, 2).done()
    assert capsys.readouterr().err == "2 trainings, 2 at a time\n"


def test_seeds(capsys):
    now, seen = [0.0], []
    for seed in each_seed("strong", 3, clock=lambda: now[0]):
        seen.append(seed)
        now[0] += 600
    out, err = capsys.readouterr()
    assert seen == [0, 1, 2]
    assert out.splitlines() == [f"strong: seed {n} of 3" for n in (1, 2, 3)]
    assert err == "strong: a seed takes 10 min, the others about 20 min\n"
    list(each_seed("strong", 1))
    assert capsys.readouterr().err == ""


def test_an_interrupted_process_leaves_the_word_to_its_parent():
    job = json.dumps(["signal", "raise_signal", [signal.SIGINT]])
    command = [sys.executable, "-m", "recjax.bench.process", job]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
