import dataclasses

import numpy as np
import pytest

from logs import hand_made_dataset, random_dataset
from recjax.train.data.event_log import EventLog, Requests, leaks

COLUMNS = ("event", "items", "users")


@pytest.mark.parametrize("has_clock", [True, False])
def test_saved_logs_open_equal_and_memory_mapped(tmp_path, has_clock):
    log = random_dataset(has_clock=has_clock).log
    awkward = {"price/unit": np.arange(3.0), "../up": np.zeros((0, 2), np.int32)}
    log = dataclasses.replace(log, users=log.users | awkward)
    log.save(tmp_path / "log")
    opened = EventLog.load(tmp_path / "log")
    assert opened.has_clock is has_clock
    for name in ("offsets", "item", "time"):
        assert isinstance(getattr(opened, name), np.memmap)
        np.testing.assert_array_equal(getattr(opened, name), getattr(log, name))
    for group in COLUMNS:
        mine, theirs = getattr(log, group), getattr(opened, group)
        assert mine.keys() == theirs.keys()
        for name, column in mine.items():
            assert theirs[name].dtype == column.dtype and theirs[name].shape == column.shape
            np.testing.assert_array_equal(theirs[name], column)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_half_written_log_is_not_opened(tmp_path):
    (tmp_path / "log.partial").mkdir()
    with pytest.raises(FileNotFoundError, match="not a saved event log"):
        EventLog.load(tmp_path / "log")


def test_counts():
    log = hand_made_dataset().log
    assert (log.num_users, log.num_events, log.num_items) == (3, 14, 9)
    assert log.lengths().tolist() == [6, 4, 4]


def test_interactions_do_not_leak():
    for dataset in (hand_made_dataset(), random_dataset()):
        for requests in (dataset.train, dataset.validation, dataset.test):
            assert leaks(dataset.log, requests).tolist() == []


def test_a_planted_leak_is_found():
    dataset = random_dataset()
    # Only a training target has an event after it in any case; its own place is one too far.
    cut = dataset.train.cut.copy()
    cut[[3, 17]] += 1
    planted = dataclasses.replace(dataset.train, cut=cut)
    assert leaks(dataset.log, planted).tolist() == [3, 17]


def one_request(cut, *, time=20, candidate=(1, 2), label=(1.0, 0.0)):
    """User 1 of a log with events (item 3, time 10), (1, 20), (2, 20), (0, 30)."""
    log = EventLog(
        offsets=np.array([0, 1, 5]),
        item=np.array([1, 3, 1, 2, 0], np.int32),
        time=np.array([20, 10, 20, 20, 30]),
        event={},
        items={"item": np.arange(2, 6, dtype=np.int32)},
        users={},
    )
    request = Requests(
        user=np.array([1], np.int32),
        cut=np.array([cut]),
        time=np.array([time]),
        candidate=np.array([candidate], np.int32),
        label={"click": np.array([label], np.float32)},
    )
    return log, request


@pytest.mark.parametrize(
    ("options", "leaking"),
    [
        (dict(cut=0), False),
        (dict(cut=1), False),
        (dict(cut=2), True),  # its own positive, at its own time
        (dict(cut=3), True),  # the same, behind another event of that second
        (dict(cut=4), True),  # a later event
        (dict(cut=3, time=19), True),
        (dict(cut=3, time=21), False),  # the item was also met before: no leak
        (dict(cut=3, candidate=(0, 3)), False),  # other events of the same second are allowed
        (dict(cut=3, label=(0.0, 0.0)), False),  # and so are items that were not chosen
    ],
)
def test_what_counts_as_a_leak(options, leaking):
    assert leaks(*one_request(**options)).tolist() == ([0] if leaking else [])


@pytest.mark.parametrize("cut", [-1, 5])
def test_cuts_outside_the_log_are_refused(cut):
    with pytest.raises(ValueError, match="cut must lie within"):
        leaks(*one_request(cut))


def test_take_keeps_every_column():
    test = hand_made_dataset().test
    requests = dataclasses.replace(
        test,
        weight={"click": np.arange(6.0).reshape(3, 2)},
        context={"hour": np.array([7, 8, 9])},
        shown={"position": np.arange(6).reshape(3, 2)},
    )
    part = requests.take(np.array([2, 0]))
    assert len(part) == 2 and part.examples == 4
    assert part.user.tolist() == [2, 0]
    assert part.cut.tolist() == [3, 5]
    assert part.time.tolist() == [9, 90_000]
    assert np.array_equal(part.candidate, test.candidate[[2, 0]])
    assert np.array_equal(part.label["click"], test.label["click"][[2, 0]])
    assert part.weight["click"].tolist() == [[4, 5], [0, 1]]
    assert part.context["hour"].tolist() == [9, 7]
    assert part.shown["position"].tolist() == [[4, 5], [0, 1]]
