import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from logs import hand_made_dataset, random_dataset
from recjax.train.data import draws, interactions
from recjax.train.data.batches.assembly import whole_batch
from recjax.train.data.batches.pipeline import TrainingBatches, evaluation_batches
from recjax.train.data.batches.requests import positives
from recjax.train.data.batches.required import ByPopularity, GroupIndex, Required
from recjax.train.data.raw_interactions import Interactions
from recjax.zoo.contract import Requirements
from recjax.zoo.features import UNSEEN_ROW

DATASET = random_dataset()
LOG = DATASET.log
# Of so many items, many are only ever targets of validation and test.
COLD = random_dataset(items=400)
GROUPS = Requirements(retrieved=3, group_by="category")
SAMPLED = Requirements(sampled=50)


def naive_groups(log, requests, field, most):
    """Per request and candidate: the newest `most` events of the same value before the cut."""
    result = []
    for r in range(len(requests)):
        start = log.offsets[requests.user[r]]
        past = range(start, start + requests.cut[r])
        row = []
        for item in requests.candidate[r]:
            value = log.items[field][item] if item >= 0 else 0
            same = [e for e in past if log.items[field][log.item[e]] == value]
            row.append(same[-most:] if value > UNSEEN_ROW else [])
        result.append(row)
    return result


@pytest.mark.parametrize("dataset", [DATASET, hand_made_dataset()], ids=["random", "hand-made"])
@pytest.mark.parametrize("most", [1, 3, 100])
@pytest.mark.parametrize("part", ["train", "test"])
def test_groups_hold_the_newest_events_of_the_candidates_category(dataset, most, part):
    requests = getattr(dataset, part)
    groups = GroupIndex(dataset.log, "category").find(requests, most)
    expected = naive_groups(dataset.log, requests, "category", most)
    for r, row in enumerate(expected):
        for c, events in enumerate(row):
            group = groups.group[r, c]
            assert (group == -1) == (not events)
            if events:
                assert groups.at[r, group][groups.mask[r, group]].tolist() == events


def test_a_group_is_found_once_for_all_its_candidates():
    requests = DATASET.test.take(np.arange(8))
    item = requests.candidate[:, :1]
    same = dataclasses.replace(requests, candidate=np.repeat(item, 4, axis=1))
    groups = GroupIndex(LOG, "category").find(same, 3)
    assert groups.mask.shape[1] == 1
    assert (groups.group == groups.group[:, :1]).all()


def test_missing_candidates_and_unknown_categories_match_nothing():
    log = dataclasses.replace(
        LOG, items={**LOG.items, "category": np.full(LOG.num_items, UNSEEN_ROW, np.int32)}
    )
    assert (GroupIndex(log, "category").find(DATASET.test, 3).group == -1).all()
    nobody = dataclasses.replace(DATASET.test, candidate=np.full_like(DATASET.test.candidate, -1))
    assert (GroupIndex(LOG, "category").find(nobody, 3).group == -1).all()


def test_an_index_needs_an_id_of_the_items():
    with pytest.raises(ValueError, match="got 'color'"):
        GroupIndex(LOG, "color")
    with pytest.raises(ValueError, match="'price' is a bag or a number"):
        GroupIndex(LOG, "price")


def test_retrieved_role_in_a_batch():
    requests = DATASET.test.take(np.arange(12))
    (batch,) = evaluation_batches(
        DATASET.schema, LOG, requests, batch_size=24, history=2, requirements=GROUPS
    )
    expected = naive_groups(LOG, requests, "category", 3)
    for r, row in enumerate(expected):
        for c, events in enumerate(row):
            if not events:
                continue
            real = batch["retrieved_mask"][r, batch["group"][r, c]]
            held = {name: v[r, batch["group"][r, c]] for name, v in batch["retrieved"].items()}
            age = batch["retrieved_age"][r, batch["group"][r, c]]
            assert held["item"][real].tolist() == LOG.items["item"][LOG.item[events]].tolist()
            assert held["behavior"][real].tolist() == LOG.event["behavior"][events].tolist()
            assert age[real].tolist() == (requests.time[r] - LOG.time[events]).tolist()
            assert not held["item"][~real].any()
            assert not age[~real].any()


def test_popularity_counts_training_positives_and_knows_only_known_items():
    sampler = ByPopularity.of(DATASET)
    counts = np.bincount(DATASET.train.candidate[:, 0], minlength=LOG.num_items)
    assert (np.diff(counts[sampler.items]) <= 0).all()
    assert (LOG.items["item"][sampler.items] > UNSEEN_ROW).all()
    assert len(sampler.items) == np.count_nonzero(LOG.items["item"] > UNSEEN_ROW)


def test_shared_negatives_follow_their_own_distribution():
    """log_count is the log of the measured expected count, and all of them sum to S."""
    sampler, size = ByPopularity.of(DATASET), 200_000
    drawn = sampler.draw(draws.uniform(7, np.arange(size)))
    expected = np.exp(sampler.log_count(sampler.items, size))
    np.testing.assert_allclose(expected.sum(), size, rtol=1e-5)
    measured = np.bincount(drawn, minlength=LOG.num_items)[sampler.items]
    assert (np.abs(measured - expected) < 5 * np.sqrt(expected)).all()


def training_batch(requirements, epoch=0, index=0, **options):
    batches = TrainingBatches(
        DATASET, batch_size=40, history=6, seed=1, requirements=requirements, **options
    )
    return next(batches.epoch(epoch, index))


def raw(step, role, field):
    return step.pulled.rows[field][step.batch[role][field]]


def test_retrieval_batches_hold_positives_and_shared_negatives():
    step = training_batch(SAMPLED)
    batch = step.batch
    assert batch["candidate_mask"].shape == (40, 1)
    assert (batch["label"]["click"] == 1).all()
    assert raw(step, "sampled", "item").shape == (50,)
    sampler = ByPopularity.of(DATASET)
    of_row = {row: item for item, row in enumerate(LOG.items["item"]) if row > UNSEEN_ROW}
    items = np.array([of_row[row] for row in raw(step, "sampled", "item")])
    np.testing.assert_array_equal(batch["sampled_log_q"], sampler.log_count(items, 50))
    items = np.array([of_row[row] for row in raw(step, "candidate", "item")[:, 0]])
    np.testing.assert_array_equal(batch["candidate_log_q"][:, 0], sampler.log_count(items, 50))


def test_draws_follow_the_address():
    same, other = training_batch(SAMPLED), training_batch(SAMPLED, index=1)
    again = training_batch(SAMPLED)
    assert (raw(same, "sampled", "item") == raw(again, "sampled", "item")).all()
    assert not (raw(same, "sampled", "item") == raw(other, "sampled", "item")).all()


@pytest.mark.parametrize("kind", ["uniform", "log_popularity"])
def test_history_negatives_are_items_that_the_user_never_touched(kind):
    required = Required(DATASET, Requirements(history_negatives=kind))
    requests = DATASET.train
    extra = required.draw(requests, 9, 1, 2, 3)
    assert extra.history_negative.shape == (len(requests), 9)
    for r in range(len(requests)):
        user = requests.user[r]
        touched = LOG.item[LOG.offsets[user] : LOG.offsets[user + 1]]
        assert not np.isin(extra.history_negative[r], touched).any()
    # Log-uniform draws prefer the head; a request's steps are drawn one by one.
    rank = ByPopularity.of(DATASET).rank[extra.history_negative]
    assert (rank.mean() < 20) == (kind == "log_popularity")
    assert len(np.unique(extra.history_negative[0])) > 1


@pytest.mark.parametrize("kind", ["uniform", "log_popularity"])
def test_history_negatives_are_items_that_training_knows_by_then(kind):
    required = Required(COLD, Requirements(history_negatives=kind), point_in_time=True)
    requests, appeared = COLD.train, COLD.appearances()
    drawn = required.draw(requests, 9, 1, 2, 3).history_negative
    unknown = COLD.log.items["item"] == UNSEEN_ROW
    np.testing.assert_array_equal(appeared == draws.NEVER, unknown)
    assert unknown.any() and not unknown[drawn].any()
    # By then there is more than anybody has touched.
    late = requests.time >= np.sort(appeared)[COLD.log.lengths().max()]
    assert late.any() and (appeared[drawn] <= requests.time[:, None])[late].all()


@pytest.mark.parametrize("kind", ["uniform", "log_popularity"])
def test_a_user_who_touched_all_that_training_knows_gets_no_negative(kind):
    """`build` leaves such targets out; requests made by hand are refused when they are drawn for.

    One item more is there, and one that nobody touches, but training knows neither.
    """
    raw = Interactions(
        user=np.repeat([0, 1, 2], [6, 4, 3]),
        item=np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 2, 0, 3]),
        time=np.arange(13),
        item_ids=pa.array([10, 11, 12, 13, 14]),
    )
    dataset = interactions.build("small", raw)
    assert dataset.train.user.tolist() == [2]
    required = Required(dataset, Requirements(history_negatives=kind))
    required.draw(dataset.train, 4, 1)
    own = dataclasses.replace(dataset.train, user=np.zeros(1, np.int32))
    message = "user 0 of the log touched all 3 items that could be drawn"
    with pytest.raises(ValueError, match=message):
        required.draw(own, 4, 1)


def test_shared_negatives_of_the_future_are_masked():
    required = Required(DATASET, SAMPLED, point_in_time=True)
    requests = DATASET.train.take(np.argsort(DATASET.train.time)[:30])
    extra = required.draw(requests, 4, 1)
    appeared = DATASET.appearances()[extra.sampled]
    expected = appeared <= requests.time[:, None]
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(extra.sampled_mask, expected)
    assert Required(DATASET, SAMPLED).draw(requests, 4, 1).sampled_mask is None


def test_history_negatives_stand_beside_real_events_only():
    step = training_batch(Requirements(history_negatives="uniform"))
    mask = step.batch["history_mask"]
    rows = raw(step, "history_negative", "item")
    assert rows[mask].all()
    assert not rows[~mask].any()
    assert set(step.batch["history_negative"]) == {"item", "category", "price"}


def test_nothing_is_drawn_that_nobody_asks_for():
    batch = training_batch(Requirements()).batch
    for role in ("retrieved", "group", "sampled", "history_negative", "candidate_log_q"):
        assert role not in batch


def test_positives_are_requests_of_one():
    requests = dataclasses.replace(
        DATASET.test.take(np.arange(3)),
        candidate=np.array([[4, 5], [6, 7], [8, -1]], np.int32),
        label={"click": np.array([[1, 1], [0, 1], [0, 1]], np.float32)},
    )
    one = positives(requests, "click")
    assert one.candidate.tolist() == [[4], [5], [7]]
    assert one.user.tolist() == requests.user[[0, 0, 1]].tolist()
    batch = whole_batch(DATASET.schema, LOG, one, history=4)
    assert batch["candidate"]["item"].shape == (3, 1)
