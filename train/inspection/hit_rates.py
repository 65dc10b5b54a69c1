"""Hit rates, field by field: the share of look-ups in serving whose row was trained.

The finer a discrete feature, the more it can remember and the less often it is met again: an id
that nobody saw in training says nothing at prediction, however well it fitted. A field that is
different in every sample (a request id, say) fits training perfectly and knows nothing after it.
"""

from collections.abc import Iterator
import dataclasses

import numpy as np

from ...zoo.features import PADDING_ROW, UNSEEN_ROW, Field
from ..data.batches.pipeline import evaluation_batches
from ..data.dataset import Dataset
from ..data.event_log import Requests

_BATCH = 8192
_FEW = 50_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class HitRate:
    """Hit rates of one id field of one role.

    Attributes:
      role, name: of the field.
      values: distinct rows that training shows in this field.
      only_once: share of them that it shows in a single training example.
      occurrences: training examples that show the row of a test lookup (in this field), median.
      hit_rate: share of the test's lookups whose row training shows in any field of its table.
    """

    role: str
    name: str
    values: int
    only_once: float
    occurrences: float
    hit_rate: float

    @property
    def identifies_samples(self) -> bool:
        """True if it tells training samples apart and is of little use after them."""
        return self.only_once > 0.5 and self.hit_rate < 0.5


def hit_rates(dataset: Dataset, *, history: int = 50) -> list[HitRate]:
    """The hit rate of every id or bag field, in the schema's order; the worst are worth reading.

    Hashed fields hit where another value of the same bucket was trained, so theirs are upper
    bounds. From at most 50,000 training and 50,000 test requests, evenly spread.
    """
    fields = [field for field in dataset.schema.fields if field.kind != "dense"]
    shown = _shown(dataset, dataset.train, fields, history)
    tested = _shown(dataset, dataset.test, fields, history)
    trained: dict[str, np.ndarray] = {}
    for field in fields:
        counts = shown[field.role, field.name]
        known = trained.setdefault(field.table_name, np.zeros(len(counts), bool))
        known |= counts > 0
    rates = []
    for field in fields:
        key = field.role, field.name
        counts, lookups = shown[key].copy(), tested[key].copy()
        lookups[PADDING_ROW] = counts[PADDING_ROW] = counts[UNSEEN_ROW] = 0
        known = trained[field.table_name].copy()
        known[: UNSEEN_ROW + 1] = False
        used = counts[counts > 0]
        rates.append(
            HitRate(
                role=field.role,
                name=field.name,
                values=len(used),
                only_once=float((used == 1).mean()) if len(used) else 0.0,
                occurrences=_weighted_median(counts, lookups),
                hit_rate=float(lookups[known].sum() / max(lookups.sum(), 1)),
            )
        )
    return rates


def _shown(
    dataset: Dataset, requests: Requests, fields: list[Field], history: int
) -> dict[tuple[str, str], np.ndarray]:
    """(rows,) per field: in how many slots of these requests each row stands."""
    rows = {table.name: table.rows for table in dataset.schema.tables}
    counts = {(f.role, f.name): np.zeros(rows[f.table_name], np.int64) for f in fields}
    for field, value in values_of(dataset, requests, history=history):
        if field.kind != "dense":
            count = counts[field.role, field.name]
            count += np.bincount(value, minlength=len(count))
    return counts


def values_of(
    dataset: Dataset, requests: Requests, *, history: int
) -> Iterator[tuple[Field, np.ndarray]]:
    """Every field with its values in all real slots, (n,) at a time; rows are of whole tables.

    Of at most 50,000 requests, evenly spread over all of them.
    """
    few = np.linspace(0, len(requests) - 1, min(len(requests), _FEW)).astype(int)
    requests = dataset.complete(requests.take(few))
    for batch in evaluation_batches(
        dataset.schema, dataset.log, requests, batch_size=_BATCH, history=history
    ):
        for field in dataset.schema.fields:
            mask = batch.get(f"{field.role}_mask", batch["candidate_mask"].any(axis=1))
            yield field, batch[field.role][field.name][mask].ravel()


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The median of `values`, each as often as its weight says; 0 without weights."""
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    if not len(total) or total[-1] == 0:
        return 0.0
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
