"""Files that were once misread, where they are at hand."""

import numpy as np
import pytest

from recjax.train.data.errors import DataError
from recjax.train.data.sources import events
from recjax.train.inspection.suspects import suspects
from testing import SHARED_DATA

CASES = SHARED_DATA.parent / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")


def role_of(dataset, name):
    return dataset.columns.get(name).role


def test_a_session_is_no_item_s():
    dataset = events.load(CASES / "05_sessions.csv")
    without = events.load(CASES / "05_without_session.csv")
    assert {f.name for f in dataset.schema.role("candidate")} == {
        f.name for f in without.schema.role("candidate")
    }
    assert suspects(dataset) == []


def test_rows_that_stand_twice_are_dropped():
    dataset = events.load(CASES / "06_twice.csv.gz")
    assert dataset.facts["duplicate rows dropped"] >= dataset.log.num_events // 2
    dataset.check()


def test_a_crawler_and_a_user_who_has_everything():
    dataset = events.load(CASES / "07_crawler.csv.gz")
    assert dataset.log.lengths().max() > 20 * np.median(dataset.log.lengths())
    dataset = events.load(CASES / "08_one_user_has_all.csv", on_bad_row="skip")
    named = dataset.facts["users left out (touched every item)"]
    lines = (CASES / "08_one_user_has_all.csv").read_text().splitlines()[1:]
    users = [line.split(",")[0] for line in lines]
    assert users.count(named) == max(map(users.count, set(users)))


def test_milliseconds_are_told_and_said():
    dataset = events.load(CASES / "09_milliseconds.csv")
    assert dataset.log.has_clock and 10**8 < dataset.log.time.min() < 10**10
    assert any("milliseconds, converted to seconds" in note for note in dataset.notes)


def test_lists_in_text_and_in_parquet_are_bags():
    for name in ("10_genres_in_text.csv", "10_lists.parquet"):
        kinds = {f.name: f.kind for f in events.load(CASES / name).schema.role("candidate")}
        assert "bag" in kinds.values(), (name, kinds)


def test_nineteen_digits_from_csv_and_from_parquet():
    text, typed = (events.load(CASES / f"12_19_digits.{kind}") for kind in ("csv", "parquet"))
    assert text.schema == typed.schema
    for part in ("train", "validation", "test"):
        one, two = getattr(text, part), getattr(typed, part)
        np.testing.assert_array_equal(one.candidate, two.candidate)
    np.testing.assert_array_equal(text.log.items["item"], typed.log.items["item"])


def test_dates_are_the_clock():
    dataset = events.load(CASES / "13_dates.csv")
    assert dataset.log.has_clock and (dataset.log.time > 10**8).all()


def test_a_sentinel_leaves_the_others_their_spread():
    dataset = events.load(CASES / "15_same_sentinel.csv")
    numbers = [f.name for f in dataset.schema.role("candidate") if f.kind == "dense"]
    assert numbers
    for name in numbers:
        column = dataset.log.items[name]
        real = column[np.abs(column) < 5]
        assert np.abs(column).max() == 5 and len(np.unique(real)) > 5 and real.std() > 0.5


def test_the_same_log_on_other_days():
    first = events.load(CASES / "04_day1.csv")
    for day in ("04_day3_one_text_id", "04_day4_one_price_changed"):
        other = events.load(CASES / f"{day}.csv", columns=first.columns, row_maps=first.row_maps)
        names = lambda dataset: [(f.role, f.name, f.kind) for f in dataset.schema.fields]
        assert names(other) == names(first)


def test_impressions_are_no_events():
    with pytest.raises(DataError, match="column 'label' says what came of each row"):
        events.load(CASES / "03_impressions.csv")
