"""Drift of a field's values between two sets of requests.

    PSI = sum_b (q_b - p_b) log(q_b / p_b)        over bins b, p before and q after
    KS  = max_x |F_before(x) - F_after(x)|        numbers only

Numbers are binned by the deciles of "before", ids by value: the 100 most frequent, the unseen, and
all the rest. A population stability index below 0.1 is usually read as no change, above 0.25 as
one to look into (Siddiqi, "Credit Risk Scorecards", Wiley 2006, chapter 8).
"""

import dataclasses
from typing import Any

import numpy as np
from scipy import stats

from ...zoo.features import UNSEEN_ROW
from ..data.batches.requests import positives
from ..data.dataset import Dataset
from ..data.event_log import Requests
from .hit_rates import values_of

ALARM = 0.25
_TOP, _BINS = 100, 10
# An empty bin counts as half a value, or as this share: the logarithm stays finite.
_LEAST = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """Drift of one field.

    Attributes:
      role, name: of the field.
      psi: of all its values.
      noise: what the PSI of two samples of one distribution stays below 99 times in 100: about
        (1 / n + 1 / m) times that quantile of chi-squared with a degree of freedom per bin but one.
      ks: of numbers; None for ids.
    """

    role: str
    name: str
    psi: float
    noise: float
    ks: float | None

    @property
    def alarm(self) -> bool:
        """True if the drift deserves a look."""
        return self.psi > ALARM + self.noise


def drift(dataset: Dataset, before: Requests, after: Requests, *, history: int = 50) -> list[Drift]:
    """The drift of every field of a data set's schema, from one set of its requests to another.

    Where the data set samples negatives, candidates are compared by the positives alone.
    """
    if dataset.samples_negatives:
        task = dataset.schema.tasks[0]
        before, after = positives(before, task), positives(after, task)
    first, second = (_values(dataset, requests, history) for requests in (before, after))
    rows = []
    for field in dataset.schema.fields:
        a, b = first[field.role, field.name], second[field.role, field.name]
        dense = field.kind == "dense"
        rows.append(
            Drift(
                role=field.role,
                name=field.name,
                psi=psi_of_numbers(a, b) if dense else psi_of_ids(a, b),
                noise=_noise(len(a), len(b), _BINS if dense else min(_TOP + 2, len(np.unique(a)))),
                ks=ks(a, b) if dense else None,
            )
        )
    return rows


def _noise(n: int, m: int, bins: int) -> float:
    if not n or not m:
        return 0.0
    return float((1 / n + 1 / m) * stats.chi2.ppf(0.99, max(bins - 1, 1)))


def psi_of_numbers(before: np.ndarray, after: np.ndarray) -> float:
    """PSI of numbers, (n,) and (m,), in the deciles of `before`; 0 if one of them is empty."""
    if not len(before) or not len(after):
        return 0.0
    edges = np.unique(np.quantile(before, np.linspace(0, 1, _BINS + 1)[1:-1]))
    # A value that fills several deciles is a bin of its own.
    bins = lambda x: np.searchsorted(edges, x, "left") + np.searchsorted(edges, x, "right")
    size = 2 * len(edges) + 1
    return _psi(*(np.bincount(bins(x), minlength=size) for x in (before, after)))


def psi_of_ids(before: np.ndarray, after: np.ndarray) -> float:
    """PSI of row ids, (n,) and (m,); 0 if one of them is empty."""
    if not len(before) or not len(after):
        return 0.0
    size = int(max(before.max(), after.max())) + 2
    counts = [np.bincount(x, minlength=size) for x in (before, after)]
    top = np.union1d(np.argsort(-counts[0], kind="stable")[:_TOP], [UNSEEN_ROW])
    binned = [np.append(c[top], c.sum() - c[top].sum()) for c in counts]
    return _psi(*binned)


def _psi(before: np.ndarray, after: np.ndarray) -> float:
    used = before + after > 0
    before, after = before[used], after[used]
    p, q = (np.maximum(x, max(0.5, _LEAST * x.sum())) / x.sum() for x in (before, after))
    return float(np.sum((q - p) * np.log(q / p)))


def ks(before: np.ndarray, after: np.ndarray) -> float:
    """The Kolmogorov-Smirnov statistic of numbers, (n,) and (m,); 0 if one of them is empty."""
    if not len(before) or not len(after):
        return 0.0
    found: Any = stats.ks_2samp(before, after, method="asymp")
    return float(found.statistic)


def _values(
    dataset: Dataset, requests: Requests, history: int
) -> dict[tuple[str, str], np.ndarray]:
    """The values of every field in all real slots; padding of ids is left out."""
    parts: dict[tuple[str, str], list[np.ndarray]] = {}
    for field, value in values_of(dataset, requests, history=history):
        value = value if field.kind == "dense" else value[value > 0]
        parts.setdefault((field.role, field.name), []).append(value)
    return {key: np.concatenate(found) for key, found in parts.items()}
