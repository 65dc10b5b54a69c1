"""Other splits, files of one's own, given negatives, ratings, and behaviours as tasks."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from logs import random_dataset, shop_columns
from recjax.train.data import interactions
from recjax.train.data.batches.pipeline import TrainingBatches
from recjax.train.data.errors import DataError
from recjax.train.data.event_log import leaks
from recjax.train.data.fields.encoding import Attribute
from recjax.train.data.protocol import Protocol, newest_of_each, parts_by_position, repeats
from recjax.train.data.raw_interactions import Interactions
from recjax.train.data.sources import events
from recjax.train.settings import Settings

SHOP = shop_columns()
PARTS = ("train", "validation", "test")


def text(path, columns):
    lines = [",".join(columns)]
    lines += [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def rows_of(columns, index):
    return {name: np.asarray(values)[index] for name, values in columns.items()}


LOG = {name: SHOP[name] for name in ("user_id", "item_id", "timestamp", "behavior")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(split_at=(1.0,), split="time"), "split_at must be two moments"),
        (dict(split_at=(2.0, 1.0), split="time"), "split_at must be two moments"),
        (dict(split_at=(1.0, 1.0), split="time"), "the first before the second"),
        (dict(split_at=(1.0, 2.0)), "split_at is for split=time"),
        (dict(tasks=("view", "view")), "a behaviour stands twice in view, view"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**options)
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_settings_make_the_protocol():
    assert isinstance(Settings(), Protocol)
    for field in dataclasses.fields(Protocol):
        assert getattr(Settings(), field.name) == getattr(Protocol(), field.name)
    with pytest.raises(ValueError, match="split_at is for split=time"):
        Settings(split_at=(1.0, 2.0))


def check_by_time(dataset, time, moments):
    """Every target lies in its part's time, and nothing earlier than its history is missing."""
    bounds = (-np.inf, *moments, np.inf)
    for part, low, high in zip(PARTS, bounds[:-1], bounds[1:], strict=True):
        requests = getattr(dataset, part)
        assert len(requests) and (requests.time >= low).all() and (requests.time < high).all()
        assert leaks(dataset.log, requests).tolist() == []
    log = dataset.log
    for part, low in (("validation", moments[0]), ("test", moments[1])):
        requests = getattr(dataset, part)
        high = moments[1] if part == "validation" else np.inf
        assert len(requests) == ((log.time >= low) & (log.time < high)).sum()
        events_before = [
            (log.time[log.offsets[u] : log.offsets[u + 1]] < t).sum()
            for u, t in zip(requests.user, requests.time, strict=True)
        ]
        np.testing.assert_array_equal(requests.cut, events_before)
    dataset.check()


def test_one_moment_splits_all_users(tmp_path):
    dataset = events.load(text(tmp_path / "log.csv", LOG), protocol=Protocol(split="time"))
    time = np.sort(LOG["timestamp"])
    moments = [time[int(0.8 * 899)], time[int(0.9 * 899)]]
    assert dataset.facts["split at"] == f"{moments[0]}, {moments[1]}"
    check_by_time(dataset, time, moments)
    # What only later events hold is unknown.
    late = np.setdiff1d(LOG["item_id"], LOG["item_id"][LOG["timestamp"] < moments[0]])
    assert (dataset.log.items["item"] == 1).sum() == len(late)


def test_moments_may_be_given(tmp_path):
    path = text(tmp_path / "log.csv", LOG)
    time = np.sort(LOG["timestamp"])
    at = (float(time[300]), float(time[700]) + 0.5)
    dataset = events.load(path, protocol=Protocol(split="time", split_at=at))
    check_by_time(dataset, time, at)
    with pytest.raises(DataError, match="no event is left for test"):
        end = float(time[-1])
        events.load(path, protocol=Protocol(split="time", split_at=(end - 9, end + 9)))
    with pytest.raises(DataError, match="no event is left for|is left"):
        events.load(path, protocol=Protocol(split="time", split_at=(1.0, 2.0)))


def test_users_of_two_events_count_where_a_moment_splits(tmp_path):
    few = {k: np.append(v, v[:2]) for k, v in rows_of(LOG, np.arange(900)).items()}
    few["user_id"] = few["user_id"].astype(int)
    few["user_id"][-2:] = 77
    few["item_id"] = few["item_id"].astype(int)
    path = text(tmp_path / "log.csv", few)
    assert events.load(path).facts["users"] == 40
    dataset = events.load(path, protocol=Protocol(split="time"))
    assert dataset.facts["users"] == 41
    assert dataset.facts["users dropped (fewer than 2 events)"] == 0


def test_a_split_by_time_needs_a_clock(tmp_path):
    without = {name: LOG[name] for name in ("user_id", "item_id")}
    with pytest.raises(DataError, match="a split by time needs a clock"):
        events.load(text(tmp_path / "log.csv", without), protocol=Protocol(split="time"))
    with pytest.raises(DataError, match="a split by time needs a clock"):
        random_dataset(has_clock=False, protocol=Protocol(split="time"))


def write_parts(tmp_path, cuts=(600, 750), shuffle=False):
    order = np.random.default_rng(0).permutation(900) if shuffle else np.arange(900)
    pieces = (order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] :])
    names = [tmp_path / f"{part}.csv" for part in PARTS]
    for name, piece in zip(names, pieces, strict=True):
        text(name, rows_of(LOG, piece))
    return ",".join(map(str, names)), pieces


def test_three_files_of_one_s_own(tmp_path):
    source, (first, second, third) = write_parts(tmp_path)
    dataset = events.load(source)
    log = dataset.log
    assert log.num_events == 900
    for part, piece in (("validation", second), ("test", third)):
        requests = getattr(dataset, part)
        assert sorted(requests.time.tolist()) == sorted(LOG["timestamp"][piece].tolist())
    assert np.isin(dataset.train.time, LOG["timestamp"][first]).all()
    assert (
        len(dataset.train)
        == np.minimum(np.unique(LOG["user_id"][first], return_counts=True)[1], 20).sum()
    )
    known = np.unique(LOG["item_id"][first])
    assert dataset.row_maps["item"].rows == 2 + len(known)
    dataset.check()


def test_a_history_of_one_s_own_files_holds_nothing_that_is_judged_later(tmp_path):
    """Files that overlap in time: a target behind a later part's event is none."""
    source, (first, second, third) = write_parts(tmp_path, shuffle=True)
    dataset = events.load(source)
    part = np.zeros(900, int)
    part[second], part[third] = 1, 2
    part_of = dict(zip(LOG["timestamp"].tolist(), part.tolist(), strict=True))
    log = dataset.log
    for own, name in enumerate(PARTS):
        requests = getattr(dataset, name)
        assert len(requests)
        for u, cut, time in zip(requests.user, requests.cut, requests.time, strict=True):
            assert part_of[int(time)] == own
            past = log.time[log.offsets[u] : log.offsets[u] + cut].tolist()
            assert all(part_of[t] <= own for t in past)
    assert len(dataset.test) == len(third)


def test_files_of_one_s_own_are_three_of_the_same_columns(tmp_path):
    source, _ = write_parts(tmp_path)
    names = source.split(",")
    with pytest.raises(DataError, match="files of one's own are three, to train, validate and te"):
        events.load(",".join(names[:2]))
    text(tmp_path / "test.csv", {k: v for k, v in LOG.items() if k != "behavior"})
    with pytest.raises(DataError, match="test.csv: lacks behavior, which .*train.csv has"):
        events.load(source)
    with pytest.raises(DataError, match="none.csv: no such file"):
        events.load(",".join([*names[:2], str(tmp_path / "none.csv")]))


def test_evaluation_negatives_by_popularity():
    options = dict(users=3000, items=50, protocol=Protocol(evaluation_negatives="popularity"))
    dataset = random_dataset(**options)
    test, log = dataset.test, dataset.log
    drawn = test.candidate[test.label["click"] == 0]
    last_two = np.concatenate([log.offsets[1:] - 1, log.offsets[1:] - 2])
    popularity = np.bincount(np.delete(log.item, last_two), minlength=50)
    # Each user's draw is by popularity among what they do not touch.
    expected = np.zeros(50)
    for u in range(log.num_users):
        weight = popularity.astype(float)
        weight[log.item[log.offsets[u] : log.offsets[u + 1]]] = 0
        expected += weight / weight.sum()
    counts = np.bincount(drawn, minlength=50)
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
    skewed = Interactions(
        user=np.repeat(np.arange(400), 4),
        item=np.random.default_rng(0).permutation((np.arange(1600) ** 2) // 1600 % 40),
        time=np.tile(np.arange(4), 400),
        item_ids=pa.array(np.arange(41)),
    )
    protocol = Protocol(evaluation_negatives="popularity")
    test = interactions.build("skewed", skewed, protocol=protocol).test
    assert not (test.candidate == 40).any()  # nobody touches it


def test_given_negatives_are_the_candidates(tmp_path):
    path = text(tmp_path / "log.csv", LOG)
    random = np.random.default_rng(0)
    pairs = [(u, i) for u in range(1000, 1040) for i in random.choice(np.arange(5000, 5080), 9)]
    given = tmp_path / "pairs.csv"
    given.write_text("user_id,item_id\n" + "".join(f"{u},{i}\n" for u, i in [*pairs, (9, 5001)]))
    dataset = events.load(path, protocol=Protocol(evaluation_negatives=str(given)))
    # 20 items more than the log has; they are unknown.
    known = np.unique(LOG["item_id"])
    ids = np.array([*known, *dict.fromkeys(i for _, i in pairs if i not in known)])
    assert dataset.log.num_items == len(ids) > len(known)
    assert (dataset.log.items["item"][len(known) :] == 1).all()
    for part in ("validation", "test"):
        requests = getattr(dataset, part)
        for r in range(len(requests)):
            real = requests.candidate[r] >= 0
            own = requests.label["click"][r][real] == 1
            assert own.tolist() == [True] + [False] * (real.sum() - 1)
            target = requests.candidate[r, 0]
            items = {i for u, i in pairs if u == 1000 + requests.user[r]} - {ids[target]}
            found = requests.candidate[r][real][1:]
            assert sorted(ids[found].tolist()) == sorted(items)
    assert dataset.train.candidate.shape[1] == 1
    plain = events.load(path)
    np.testing.assert_array_equal(plain.train.candidate, dataset.train.candidate)


def test_bad_pairs(tmp_path):
    path = text(tmp_path / "log.csv", LOG)
    given = tmp_path / "pairs.csv"
    given.write_text("user_id,item\n1000,5000\n")
    with pytest.raises(DataError, match="pairs.csv: column 'item_id' is missing; found user_id, i"):
        events.load(path, protocol=Protocol(evaluation_negatives=str(given)))
    given.write_text("user_id,item_id\n1000,5000\n1000,5001\n")
    with pytest.raises(DataError, match="evaluation_negatives: 39 targets have no given item"):
        events.load(path, protocol=Protocol(evaluation_negatives=str(given)))
    with pytest.raises(DataError, match="no such file"):
        events.load(path, protocol=Protocol(evaluation_negatives=str(tmp_path / "none.csv")))
    with pytest.raises(ValueError, match="must be uniform, popularity or a file of pairs, got 'x'"):
        random_dataset(protocol=Protocol(evaluation_negatives="x"))


TASKS = ("view", "buy")


def test_behaviours_are_tasks_of_a_funnel(tmp_path):
    """cart is none of them: such events are history, and no targets."""
    path = text(tmp_path / "log.csv", LOG)
    dataset = events.load(path, protocol=Protocol(tasks=TASKS))
    assert dataset.schema.tasks == TASKS
    by_time = dict(zip(LOG["timestamp"].tolist(), LOG["behavior"], strict=True))
    assert dataset.log.num_events == 900
    for part in PARTS:
        requests = getattr(dataset, part)
        own = requests.label["view"] == 1
        assert (own.sum(axis=1) == 1).all()
        behaviors = np.array([by_time[int(t)] for t in requests.time])
        assert set(behaviors) == {"view", "buy"}
        np.testing.assert_array_equal(requests.label["buy"].sum(axis=1), behaviors == "buy")
        assert (requests.label["buy"] <= requests.label["view"]).all()
    log = dataset.log
    for r in range(len(dataset.test)):
        start, end = log.offsets[dataset.test.user[r] : dataset.test.user[r] + 2]
        targets = [e for e in range(start, end) if by_time[int(log.time[e])] != "cart"]
        assert dataset.test.cut[r] == targets[-1] - start
        assert dataset.validation.cut[r] == targets[-2] - start
    step = next(TrainingBatches(dataset, batch_size=64, history=5).epoch(0))
    assert set(step.batch["label"]) == set(step.batch["weight"]) == set(TASKS)
    whole = step.batch["candidate_mask"]
    assert (step.batch["label"]["view"].sum(axis=1)[whole.all(axis=1)] == 1).all()


def test_tasks_must_be_behaviours_of_the_log(tmp_path):
    path = text(tmp_path / "log.csv", LOG)
    with pytest.raises(DataError, match=r"no event is a 'sell' \(.*view.*\)"):
        events.load(path, protocol=Protocol(tasks=("view", "sell")))
    without = {name: LOG[name] for name in ("user_id", "item_id", "timestamp")}
    with pytest.raises(DataError, match="tasks are behaviours, but the events have none"):
        events.load(text(tmp_path / "x.csv", without), protocol=Protocol(tasks=TASKS))


def test_positions_by_hand():
    offsets = np.array([0, 4, 6, 6, 9])
    target = np.array([1, 1, 1, 0, 1, 1, 1, 1, 1], bool)
    part = parts_by_position(offsets, target)
    # What stands behind the last target is of the test too, and no target.
    assert part.tolist() == [0, 1, 2, 2, 1, 2, 0, 1, 2]
    index = np.array([0, 1, 2, 4, 6, 7, 8])
    assert newest_of_each(index, offsets, 2).tolist() == [1, 2, 4, 7, 8]
    assert repeats(np.array([1, 1, 2, 1]), np.array([5, 5, 5, 6])).tolist() == [
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("threshold", [2.5, 3.0, 5.5])
def test_ratings_by_hand(threshold):
    user = np.repeat(np.arange(30), 10)
    random = np.random.default_rng(0)
    rating = random.choice([1, 2, 2.5, 3, 5.5, np.nan], 300)
    raw = Interactions(
        user=user,
        item=random.integers(0, 50, 300),
        time=np.arange(300),
        item_ids=pa.array(np.arange(50)),
        events=(Attribute(name="stars", values=pa.array(rating)),),
        rating=rating,
    )
    protocol = Protocol(min_rating=threshold)
    if threshold > 5:
        few = dataclasses.replace(raw, rating=np.where(np.arange(300) % 10 < 8, 1.0, rating))
        with pytest.raises(DataError, match="every user has fewer than 3 events"):
            interactions.build("few", few, protocol=protocol)
    dataset = interactions.build("rated", raw, protocol=protocol)
    assert (dataset.log.event["stars"] >= threshold).all()
    low = ~(rating >= threshold)
    assert dataset.facts[f"events rated below {threshold:g} left out"] == low.sum()
    with pytest.raises(DataError, match="min_rating needs ratings"):
        interactions.build("x", dataclasses.replace(raw, rating=None), protocol=protocol)
