"""Times of every usual form are the same seconds; what is no time is a bad row."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest

from recjax.train.data.declaration.clock import looks_like_epoch, looks_like_time, read_clock

# 13 September 2020, 12:26:40 UTC, and some moments after it.
MOMENT = 1_600_000_000
SECONDS = np.array([MOMENT, MOMENT + 1, MOMENT + 90_000, MOMENT + 500])
PER = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def read(values, unit=None, kind=None):
    return read_clock(pa.array(values, kind), unit)


def check(clock, unit, seconds=SECONDS, *, has_clock=True):
    assert clock.bad == {}
    assert clock.seconds.dtype == np.int64
    assert clock.seconds.tolist() == list(seconds)
    assert (clock.unit, clock.has_clock) == (unit, has_clock)


@pytest.mark.parametrize("form", ["int64", "uint64", "float64", "decimal", "text", "padded text"])
@pytest.mark.parametrize("unit", PER)
def test_the_magnitude_tells_the_unit(unit, form):
    numbers = SECONDS * PER[unit]
    values = {
        "int64": pa.array(numbers),
        "uint64": pa.array(numbers.astype(np.uint64)),
        "float64": pa.array(numbers.astype(float)),
        "decimal": pa.array([decimal.Decimal(int(n)) for n in numbers]),
        "text": pa.array([str(n) for n in numbers]),
        "padded text": pa.array([f" +{n} " for n in numbers]),
    }[form]
    clock = read_clock(values)
    check(clock, unit)
    names = {"ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
    assert clock.note == ("" if unit == "s" else f"{names[unit]}, converted to seconds")
    check(read_clock(values, unit), unit)


def test_fractions_are_cut_off_and_exponents_are_numbers():
    check(read([s + 0.75 for s in SECONDS.tolist()]), "s")
    check(read([f"{s}.999" for s in SECONDS]), "s")
    check(read([f"{s * 1000}.5" for s in SECONDS]), "ms")
    check(read(["1.6e9", "1.600000001E+09"]), "s", SECONDS[:2])
    check(read(SECONDS.astype(np.int32)), "s")


ISO = [
    "2020-09-13 12:26:40",
    "2020-09-13T12:26:40",
    "2020-09-13T12:26:40Z",
    "2020-09-13T12:26:40 UTC",
    "2020-09-13 12:26:40 GMT",
    "2020-09-13T14:26:40+02:00",
    "2020-09-13T14:26:40+0200",
    "2020-09-13T14:26:40+02",
    "2020-09-13 07:26:40 -05:00",
    "2020-09-13T17:56:40+05:30",
    "2020-09-13T12:26:40.123Z",
    "2020-09-13 12:26:40.999999999",
    "2020-09-13 12:26:40,5",
    "2020/09/13 12:26:40",
    "  2020-09-13 12:26:40 ",
]


@pytest.mark.parametrize("text", ISO)
def test_iso_texts(text):
    check(read([text] * 3), "iso", [MOMENT] * 3)


def test_zones_may_differ_from_row_to_row_and_parts_may_be_missing():
    check(read(ISO), "iso", [MOMENT] * len(ISO))
    texts = ["2020-09-13 12:26", "2020-09-13 12", "2020-09-13"]
    check(read(texts), "iso", [MOMENT - 40, MOMENT - 1600, MOMENT - 44_800])
    check(read(["1969-12-31T23:59:59Z"]), "iso", [-1])


def test_texts_that_are_no_moment_are_bad_rows():
    texts = [ISO[0], "2020-02-30", "yesterday", "", "2020-13-01", "2020-09-13T25:00:00", None]
    clock = read([*texts, ISO[1], ISO[2], "1600000000"])
    assert sorted(clock.bad) == [1, 2, 3, 4, 5, 6, 9]
    assert clock.bad[1] == "timestamp must be a time, got '2020-02-30'"
    assert clock.bad[6] == "timestamp is missing"
    assert clock.seconds[[0, 7, 8]].tolist() == [MOMENT] * 3


@pytest.mark.parametrize("kind", ["int", "text", "float"])
def test_days_and_moments_written_as_one_number(kind):
    made = {"int": int, "text": str, "float": float}[kind]
    days = [made(x) for x in (20200913, 20200914, 20191231)]
    midnight = MOMENT - 44_800
    expected = [midnight, midnight + 86_400, midnight - 257 * 86_400]
    clock = read(days)
    check(clock, "yyyymmdd", expected)
    assert clock.note == "days as yyyymmdd"
    check(read(days, "yyyymmdd"), "yyyymmdd", expected)
    wrong = read([*days, made(20200230), made(20201301)])
    assert sorted(wrong.bad) == [3, 4]
    moments = [made(x) for x in (20200913122640, 20200913122641, 20200913235959)]
    expected = [MOMENT, MOMENT + 1, midnight + 86_399]
    check(read(moments), "iso", expected)
    check(read(moments, "iso"), "iso", expected)  # as the declaration of a run says


@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Shanghai"])
@pytest.mark.parametrize("unit", PER)
def test_arrow_timestamps(unit, zone):
    """Arrow holds UTC whatever zone it shows."""
    values = pa.array(SECONDS * PER[unit] + PER[unit] // 2).cast(pa.timestamp(unit, zone))
    check(read_clock(values), "iso")
    for declared in ("s", "ms", "iso", "yyyymmdd"):
        check(read_clock(values, declared), declared)
    assert not read_clock(values, "order").has_clock
    missing = read_clock(pa.array([None, SECONDS[0] * PER[unit]]).cast(values.type))
    assert missing.bad == {0: "timestamp is missing"}


def test_times_before_1970_are_rounded_down_alike():
    values = pa.array([-1, -1000, -1001, 999]).cast(pa.timestamp("ms"))
    check(read_clock(values), "iso", [-1, -1, -2, 0])


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()], ids=str)
def test_arrow_dates(kind):
    days = [datetime.date(2020, 9, 13), datetime.date(1969, 12, 31)]
    check(read(days, kind=kind), "iso", [MOMENT - 44_800, -86_400])


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("unit", PER)
def test_of_a_mixture_the_most_are_right(unit, as_text):
    """0 and -1 for "unknown", and values of another unit, are bad rows."""
    good = [int(s) * PER[unit] for s in SECONDS]
    others = [int(MOMENT) * per for name, per in PER.items() if name != unit]
    values = [*good, 0, -1, *others, None]
    if as_text:
        values = [None if x is None else str(x) for x in values]
    clock = read(values)
    assert sorted(clock.bad) == list(range(4, len(values)))
    assert clock.seconds[:4].tolist() == SECONDS.tolist()
    assert "timestamp must be a time" in clock.bad[4] and "got" in clock.bad[4]
    assert clock.bad[len(values) - 1] == "timestamp is missing"
    # A declaration decides where it must be told anew: here the good rows are fewer.
    again = read([*values[:2], *[values[4]] * 9], unit)
    assert sorted(again.bad) == list(range(2, 11))


def test_what_is_no_number_of_a_time():
    clock = read([float(MOMENT), float("nan"), float("inf"), -float("inf"), 1e300, MOMENT + 5.0])
    assert sorted(clock.bad) == [1, 2, 3, 4]
    clock = read([MOMENT, MOMENT, 2**64 - 1], kind=pa.uint64())
    assert clock.bad == {2: "timestamp must be a time, got 18446744073709551615"}
    clock = read([str(MOMENT), str(MOMENT), "9" * 19, "9" * 30])
    assert sorted(clock.bad) == [2, 3]
    assert len(read([[1], [2]]).bad) == 2


def test_small_numbers_are_an_order_or_seconds_since_some_start():
    check(read(list(range(50))), "order", range(50), has_clock=False)
    check(read([str(n) for n in range(50)]), "order", range(50), has_clock=False)
    check(read([5, 4, 4, 1]), "order", [5, 4, 4, 1], has_clock=False)
    check(read(list(range(10**6, 10**6 + 50))), "order", range(10**6, 10**6 + 50), has_clock=False)
    check(read([0, 90_000, 200_000]), "s", [0, 90_000, 200_000])
    check(read([-5, 7, 100, 200_000]), "s", [-5, 7, 100, 200_000])


def test_five_years_of_seconds_since_some_start_are_all_good():
    """Whatever part of them is larger than the seconds of 1973."""
    for first in (0, 90_000_000):
        seconds = range(first, first + 160_000_000, 10**6)
        check(read(list(seconds)), "s", seconds)
        check(read(list(seconds), "s"), "s", seconds)
    clock = read([*range(0, 10**7, 10**5), MOMENT])
    assert sorted(clock.bad) == [100]


def test_a_declared_unit_is_never_guessed_again():
    """Not even where all the values of a file look like another one."""
    clock = read(SECONDS, "ms")
    assert len(clock.bad) == 4
    assert clock.bad[0] == "timestamp must be a time in milliseconds, got 1600000000"
    assert len(read(SECONDS * 1000, "s").bad) == 4
    assert len(read(SECONDS, "iso").bad) == 4
    assert len(read([str(s) for s in SECONDS], "iso").bad) == 4
    assert len(read([ISO[0]] * 4, "s").bad) == 4
    check(read(SECONDS, "order"), "order", has_clock=False)
    check(read([1, 2, 3], "s"), "s", [1, 2, 3])
    check(read([], "s", pa.int64()), "s", [])


def test_what_looks_like_time():
    assert looks_like_time(pa.array(["2020-01-02", None, "2020/01/03 10:00"]))
    assert looks_like_time(pa.array([datetime.date(2020, 1, 2)]))
    assert looks_like_time(pa.array([datetime.time(12)]))
    for values in (["2020-01-02", "x"], ["12"], [1600000000], pa.nulls(3, pa.string())):
        assert not looks_like_time(pa.array(values))
    for per in PER.values():
        assert looks_like_epoch(pa.array(SECONDS * per))
    assert looks_like_epoch(pa.array(["20200913"])) and looks_like_epoch(pa.array([1.6e9]))
    for values in ([1, 2], [MOMENT, 5], ["x"], [True], [-MOMENT], pa.nulls(2, pa.int64())):
        assert not looks_like_epoch(pa.array(values))


def test_the_span_of_seconds_since_some_start_is_said():
    hours = [1_600_000_000 // 3600 + hour * hour for hour in range(400)]  # Not what is meant.
    assert read(hours).note == "seconds since some start, 1.84 days in all"
