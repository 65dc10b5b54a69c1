"""Times of any usual form as whole seconds since 1970.

Numbers count seconds, milliseconds, microseconds or nanoseconds: which, their magnitude tells. A
file has one unit: values of another magnitude, such as 0 or -1 for "unknown", are bad rows. Numbers
far too small for seconds since 1970 (0, 1, 2, ...) only tell an order.
"""

import datetime
import reprlib
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute  # its functions are made when it is imported

# From 1973 (in seconds) to the year 5138: seconds of any real log lie between these.
_FIRST, _LAST = 10**8, 10**11
# 1990. A file that ends before counts from a start of its own.
_RECENT = 631_152_000
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_DAY = 86_400
# Moments written as digits: what they are multiplied and divided by to have seconds, as 14 digits.
# No unit since 1970 has as many digits in the years that logs are of.
_FORMS = (
    ("yyyymmddhhmmss", 1, 1),
    ("yyyymmddhhmm", 10**2, 1),
    ("yyyymmddhh", 10**4, 1),
    ("yyyymmddhhmmss and milliseconds", 1, 10**3),
)
_FIRST_MOMENT, _LAST_MOMENT = 19700101_000000, 21001231_235959
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_WHOLE = r"^\s*[+-]?\d{1,19}(\.\d*)?\s*$"
_ISO = (
    r"^\d{4}-\d{2}-\d{2}([T ]\d{2}(:\d{2}(:\d{2})?)?([.,]\d+)?)?"
    r"\s*(Z|[+-]\d{2}(:?\d{2})?)?$"
)
_ZONE = r"(:\d{2}|T\d{2}| \d{2})\s*(Z|[+-]\d{2}(:?\d{2})?)$"
_READ = "times are seconds or a finer unit since 1970, or ISO 8601 such as 2020-10-02 21:26:40"
_NO_TIME = np.iinfo(np.int64).min


class Clock(NamedTuple):
    """A column of times, read.

    Attributes:
      seconds: (n,) int64; anything where `bad` has the row.
      bad: {row: reason} of the values that are no time.
      unit: in which the column is written, see `Column.unit`.
      has_clock: whether these are seconds, and not only an order.
      note: what was found out, for people; "" for plain seconds.
    """

    seconds: np.ndarray
    bad: dict[int, str]
    unit: str
    has_clock: bool
    note: str


def read_clock(values: pa.Array, unit: str | None = None) -> Clock:
    """Reads a column of times, in `unit` or in the unit that its values tell.

    Numbers (integers, floats, text), ISO 8601 texts with or without a time of day, fraction and
    zone (without one it is UTC), `yyyymmdd` days, Arrow dates and timestamps.
    """
    clock = _read(values, unit)
    all_wrong = len(values) and len(clock.bad) == len(values) and not values.null_count
    if not all_wrong or unit in ("ms", "us", "ns"):  # Of these, the reasons name the unit.
        return clock
    # Where all are wrong, something else is meant: what would be read is said.
    rule = _READ if unit is None else f"the times are declared as {_NAMES.get(unit, unit)}"
    return clock._replace(bad={row: f"{reason}; {rule}" for row, reason in clock.bad.items()})


def _read(values: pa.Array, unit: str | None) -> Clock:
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        has_clock = unit != "order"
        seconds, wrong = _floored(values), values.is_null().to_numpy(zero_copy_only=False)
        wrong = _with_strange(seconds, wrong)
        return _clock(values, seconds, wrong, unit or "iso", "", has_clock=has_clock)
    if pa.types.is_string(kind):
        return _read_text(values, unit)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers, odd = _whole(values)
        return _read_numbers(values, numbers, odd, unit)
    every = np.ones(len(values), bool)
    return _clock(values, np.zeros(len(values), np.int64), every, unit or "s", f"{kind}")


def looks_like_time(values: pa.Array) -> bool:
    """True if a column holds dates or times, whatever it is called: by type, or ISO texts."""
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind):
        return True
    there = values.drop_null()
    if not pa.types.is_string(kind) or not len(there):
        return False
    return pc.all(pc.match_substring_regex(_tidy(there), _ISO)).as_py()


def looks_like_epoch(values: pa.Array) -> bool:
    """True if all are whole numbers of some unit between 1990 and 2100."""
    there = values.drop_null()
    fine = pa.types.is_integer(there.type) or pa.types.is_string(there.type)
    fine = fine or pa.types.is_floating(there.type)
    if not fine or not len(there):
        return False
    numbers, odd = _whole(there)
    if odd.any():
        return False
    for per in _PER_SECOND.values():
        if (numbers >= 630_000_000 * per).all() and (numbers < 4_102_444_800 * per).all():
            return True
    return bool(_is_day(numbers).all() or (_moments(numbers)[0] != _NO_TIME).all())


def _read_text(values: pa.Array, unit: str | None) -> Clock:
    numeric = _matches(values, _NUMBER)
    iso = _matches(_tidy(values), _ISO)
    if unit in (None, "iso") and iso.sum() > numeric.sum():
        seconds = _parse_iso(_tidy(values), iso)
        wrong = _with_strange(seconds, seconds == _NO_TIME)
        return _clock(values, seconds, wrong, "iso", "ISO dates and times, UTC if no zone")
    numbers, odd = _whole(values)
    return _read_numbers(values, numbers, odd, unit)


def _read_numbers(
    values: pa.Array, numbers: np.ndarray, odd: np.ndarray, unit: str | None
) -> Clock:
    there = numbers[~odd]
    if unit == "order":
        return _clock(values, numbers, odd, unit, "tells an order, not a time", has_clock=False)
    if unit in (None, "yyyymmdd") and len(there) and (unit or _is_day(there).mean() > 0.5):
        seconds = _days(numbers)
        wrong = odd | (seconds == _NO_TIME)
        return _clock(values, seconds, wrong, "yyyymmdd", "days as yyyymmdd")
    moments, form = _moments(there)
    if unit == "iso" or (unit is None and len(there) and (moments != _NO_TIME).mean() > 0.5):
        seconds = np.full(len(numbers), _NO_TIME)
        seconds[~odd] = moments
        return _clock(values, seconds, odd | (seconds == _NO_TIME), "iso", form)
    of = {name: _within(there, per) for name, per in _PER_SECOND.items()}
    counts = {name: int(np.count_nonzero(some)) for name, some in of.items()}
    found = unit or max(counts, key=lambda name: counts[name])
    early = bool((np.abs(there.astype(np.float64)) < _RECENT).all())
    # What stands for "unknown" is one number or two, however often.
    small = np.unique(there[np.abs(there.astype(np.float64)) < _FIRST])
    most = counts[found] and counts[found] >= len(small)
    if unit in ("ms", "us", "ns") or (most and not early):
        per = _PER_SECOND[found]
        wrong = odd | ~_within(numbers, per)
        note = "" if found == "s" else f"{_NAMES[found]}, converted to seconds"
        return _clock(values, numbers // per, wrong, found, note)
    # Too small for a time since 1970: a time since something else, or a count of events.
    limit = _RECENT if early else _FIRST
    wrong = odd | (np.abs(numbers.astype(np.float64)) >= limit)
    if unit is not None:
        return _clock(values, numbers, wrong, unit, "")
    small = numbers[~wrong]
    span = int(small.max()) - int(small.min()) if len(small) else 0
    # A count of events takes nearly every number; seconds of a log do not.
    has_clock = span >= _DAY and 2 * len(np.unique(small)) <= span + 1
    if has_clock:
        # Hours or days since 1970 look the same: the span shows whether these are seconds.
        note = f"seconds since some start, {span / _DAY:.3g} days in all"
        return _clock(values, numbers, wrong, "s", note)
    note = "tells an order, not a time"
    return _clock(values, numbers, wrong, "order", note, has_clock=False)


def _clock(
    values: pa.Array, seconds: Any, wrong: Any, unit: str, note: str, *, has_clock: bool = True
) -> Clock:
    wrong = np.asarray(wrong)
    bad = {}
    for row in np.flatnonzero(wrong):
        shown = values[int(row)].as_py()
        what = f" in {_NAMES[unit]}" if unit in ("ms", "us", "ns") else ""
        bad[int(row)] = (
            "timestamp is missing"
            if shown is None
            else f"timestamp must be a time{what}, got {_shown(shown)}"
        )
    return Clock(np.where(wrong, 0, seconds).astype(np.int64), bad, unit, has_clock, note)


def _shown(value: Any) -> str:
    """A value as its file shows it, not as Python does."""
    return str(value) if hasattr(value, "isoformat") else reprlib.repr(value)


def _with_strange(seconds: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """The wrong ones, and dates that stand for "unknown" among times of today: 1970-01-01."""
    usual = _within(seconds, 1)
    if 2 * np.count_nonzero(usual & ~wrong) <= np.count_nonzero(~wrong):
        return wrong
    return wrong | ~usual


def _within(numbers: np.ndarray, per: int) -> np.ndarray:
    """Which numbers are a time between 1973 and 5138 in a unit of so many per second."""
    low, high = _FIRST * per, min(_LAST * per, np.iinfo(np.int64).max)
    return (numbers >= low) & (numbers < high)


def _whole(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64, fractions cut off, and which values are no number within 64 bits."""
    if pa.types.is_string(values.type):
        plain = _matches(values, _WHOLE)
        text = pc.replace_substring_regex(pc.utf8_trim_whitespace(values), r"\.\d*$", "")
        text = pc.replace_substring_regex(text, r"^\+", "")
        numbers, odd = np.zeros(len(values), np.int64), ~plain
        # 19 digits may not fit: those are looked at one by one.
        long = plain & _matches(text, r"^-?\d{19}$")
        short = pc.if_else(pa.array(plain & ~long), text, pa.scalar("0"))
        numbers[:] = short.cast(pa.int64()).to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(long):
            value = int(text[int(row)].as_py())
            fits = -(2**63) <= value < 2**63
            numbers[row], odd[row] = (value, False) if fits else (0, True)
        rest = np.flatnonzero(odd & _matches(values, _NUMBER))
        if len(rest):
            floats = values.take(pa.array(rest))
            floats = pc.utf8_trim_whitespace(floats).cast(pa.float64())
            numbers[rest], odd[rest] = _whole(floats)
        return numbers, odd
    null = values.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_integer(values.type):
        if values.type == pa.uint64():
            raw = values.fill_null(0).to_numpy(zero_copy_only=False)
            odd = null | (raw > np.uint64(np.iinfo(np.int64).max))
            return np.where(odd, np.uint64(0), raw).astype(np.int64), odd
        return values.fill_null(0).cast(pa.int64()).to_numpy(zero_copy_only=False), null
    floats = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    odd = ~np.isfinite(floats) | (np.abs(np.nan_to_num(floats)) >= 2.0**63)
    return np.floor(np.where(odd, 0.0, floats)).astype(np.int64), odd


def _days(numbers: np.ndarray) -> np.ndarray:
    """Midnight of days written yyyymmdd; `_NO_TIME` where there is no such day."""
    result = np.full(len(numbers), _NO_TIME)
    distinct, which = np.unique(numbers, return_inverse=True)
    seconds = np.array([_midnight(int(number)) for number in distinct], np.int64)
    return seconds[which] if len(numbers) else result


def _midnight(number: int) -> int:
    if not 19000101 <= number <= 21001231:
        return _NO_TIME
    try:
        day = datetime.date(number // 10_000, number // 100 % 100, number % 100)
    except ValueError:
        return _NO_TIME
    return (day - datetime.date(1970, 1, 1)).days * _DAY


def _is_day(numbers: np.ndarray) -> np.ndarray:
    return _days(numbers) != _NO_TIME


def _moments(numbers: np.ndarray) -> tuple[np.ndarray, str]:
    """Seconds of moments written as digits, as far as the hour or further, and how.

    The form is the one of `_FORMS` that most numbers have; others are `_NO_TIME`.
    """
    found = [(_in_form(numbers, times, per), form) for form, times, per in _FORMS]
    return max(found, key=lambda one: np.count_nonzero(one[0] != _NO_TIME))


def _in_form(numbers: np.ndarray, times: int, per: int) -> np.ndarray:
    result = np.full(len(numbers), _NO_TIME)
    low, high = _FIRST_MOMENT * per // times, (_LAST_MOMENT + 1) * per // times
    some = np.flatnonzero((numbers >= low) & (numbers <= high))
    moment = numbers[some] * times // per
    clock = moment % 10**6
    hour, minute, second = clock // 10_000, clock // 100 % 100, clock % 100
    days = _days(moment // 10**6)
    fine = (days != _NO_TIME) & (hour < 24) & (minute < 60) & (second < 60)
    result[some[fine]] = (days + hour * 3600 + minute * 60 + second)[fine]
    return result


def _matches(values: Any, pattern: str) -> np.ndarray:
    found = pc.fill_null(pc.match_substring_regex(values, pattern), False)
    return np.array(found.to_numpy(zero_copy_only=False))


def _tidy(values: Any) -> Any:
    """Texts with dashes between the parts of a date, Z for UTC, and no fraction of seconds."""
    text = pc.utf8_trim_whitespace(values)
    text = pc.replace_substring_regex(text, r"^(\d{4})/(\d{2})/(\d{2})", r"\1-\2-\3")
    text = pc.replace_substring_regex(text, r"\s*(UTC|GMT)$", "Z")
    return pc.replace_substring_regex(text, r"(:\d{2})[.,]\d+", r"\1")


def _parse_iso(texts: Any, fine: np.ndarray) -> np.ndarray:
    """Seconds of ISO texts; `_NO_TIME` for others and for days that do not exist."""
    result = np.full(len(texts), _NO_TIME)
    zoned = fine & _matches(texts, _ZONE)
    for rows, kind in (
        (np.flatnonzero(fine & ~zoned), pa.timestamp("s")),
        (np.flatnonzero(zoned), pa.timestamp("s", "UTC")),
    ):
        some = texts.take(pa.array(rows))
        some = pc.replace_substring_regex(some, r"\s+(Z|[+-]\d{2}:?\d{0,2})$", r"\1")
        try:
            result[rows] = some.cast(kind).cast(pa.int64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            result[rows] = [_one_iso(text) for text in some.to_pylist()]
    return result


def _one_iso(text: str) -> int:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return _NO_TIME
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return int(moment.timestamp())


def _floored(values: pa.Array) -> np.ndarray:
    kind = values.type
    # Arrow holds UTC, whatever zone it shows.
    moments = values if pa.types.is_timestamp(kind) else values.cast(pa.timestamp("ms"))
    per = _PER_SECOND[moments.type.unit]
    numbers = moments.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return numbers // per
