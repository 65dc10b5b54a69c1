"""`planted[:PRESET]`: small worlds in which one thing holds and nothing else, to see who finds it.

    co_clicks  a candidate is clicked if it goes with the last clicked item: 1 pair in 10 does,
               drawn at random, so neither item says anything alone
    popular    the control: the same, but it is the candidate alone that decides
    two_tastes a user has events of one half of the items and clicks on that half; everybody has
               equally many, so counts cannot tell users apart
    sample_id  labels are coin tosses; the field `sample` is another value in every request

The first two ask for crosses (`--set crosses=history.item*candidate.item`), the last for
`recjax inspect`.
"""

import numpy as np

from ....zoo.features import Field, KnownRows, Schema, Table, signatures
from ..dataset import Dataset
from ..errors import DataError
from ..event_log import EventLog, Requests

PRESETS = ("co_clicks", "popular", "two_tastes", "sample_id")
ITEMS, HISTORY, CANDIDATES = 100, 3, 4
REQUESTS = {"train": 40_000, "validation": 5_000, "test": 10_000}
_SHARE, _HIGH, _LOW = 0.1, 0.6, 0.1
_DAY = 86_400


def load(preset: str = "co_clicks", *, seed: int = 0) -> Dataset:
    """One of `PRESETS`; `seed` draws which pairs, or which items, are clicked.

    Every user has `HISTORY` events and one request, a day after the last. Users are split.

    Raises:
      DataError: no such preset.
    """
    if preset not in PRESETS:
        raise DataError(f"Unknown planted world {preset!r}; choose from {', '.join(PRESETS)}.")
    rng = np.random.default_rng([seed, PRESETS.index(preset)])
    count = sum(REQUESTS.values())
    item = rng.integers(0, ITEMS, (count, HISTORY)).astype(np.int32)
    candidate = rng.integers(0, ITEMS, (count, CANDIDATES)).astype(np.int32)
    if preset == "two_tastes":
        taste = rng.integers(0, 2, (count, 1))
        item = (item % (ITEMS // 2) + taste * (ITEMS // 2)).astype(np.int32)
        likes = candidate // (ITEMS // 2) == taste
    elif preset == "co_clicks":
        likes = (rng.random((ITEMS, ITEMS)) < _SHARE)[item[:, -1:], candidate]
    else:
        likes = (rng.random(ITEMS) < _SHARE)[candidate]
    probability = np.where(likes, _HIGH, _LOW)
    if preset == "sample_id":
        probability = np.full(candidate.shape, 0.5)
    click = rng.random(candidate.shape) < probability

    row_maps = {"item": KnownRows.of(signatures("item", np.arange(ITEMS)))}
    context = {}
    if preset == "sample_id":
        sample = signatures("sample", np.arange(count))
        row_maps["sample"] = KnownRows.of(sample[: REQUESTS["train"]])
        context["sample"] = row_maps["sample"](sample)
    ordered = np.arange(count * HISTORY).reshape(count, HISTORY)
    log = EventLog(
        offsets=np.arange(count + 1) * HISTORY,
        item=item.ravel(),
        time=(ordered % HISTORY).ravel() * _DAY,
        event={},
        items={"item": row_maps["item"](signatures("item", np.arange(ITEMS)))},
        users={},
    )
    requests = Requests(
        user=np.arange(count, dtype=np.int32),
        cut=np.full(count, HISTORY),
        time=np.full(count, HISTORY * _DAY),
        candidate=candidate,
        label={"click": click.astype(np.float32)},
        context=context,
    )
    ends = np.cumsum(list(REQUESTS.values()))
    splits = dict(zip(REQUESTS, np.split(np.arange(count), ends[:-1]), strict=True))
    fields = [Field(name="item", role="history"), Field(name="item", role="candidate")]
    fields += [Field(name=name, role="context") for name in context]
    return Dataset(
        name=f"planted:{preset}",
        schema=Schema(
            tables=tuple(Table(name=n, rows=m.rows, dim=16) for n, m in row_maps.items()),
            fields=tuple(fields),
        ),
        row_maps=dict(row_maps),
        log=log,
        train=requests.take(splits["train"]),
        validation=requests.take(splits["validation"]),
        test=requests.take(splits["test"]),
        truth={"test": {"click": probability[splits["test"]]}},
        facts={"users": count, "items": ITEMS},
    )
