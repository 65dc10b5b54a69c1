"""Scores and metrics of a model on requests. Whole tables, no gradients, no randomness."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from ...zoo.batch import Batch, served
from ...zoo.contract import Model, Output, Slate, Variables
from ...zoo.features import require_rows
from ..data import draws
from ..data.batches.pipeline import evaluation_batches
from ..data.dataset import Dataset
from ..data.event_log import Requests
from . import metrics
from .calibration import Calibration, Calibrations, choose_calibration, shift_of
from .reliability import Reliability, reliability
from .retrieval import evaluate_retrieval

_BATCH_SIZE = 8192
_GIVEN = "_given_"
_OF_PROBABILITIES = (
    "logloss",
    "calibration",
    "calibration_error",
    "calibration_noise",
    "calibration_loss",
)


@functools.lru_cache(maxsize=16)
def _scorer(model: Model, config: Any):
    def score(variables: Variables, batch: Batch) -> Output | Slate:
        return model.apply(variables, config, batch)

    return jax.jit(score)


def predict(
    model: Model,
    config: Any,
    variables: Variables,
    dataset: Dataset,
    requests: Requests,
    *,
    history: int,
) -> dict[str, np.ndarray]:
    """Logits of every request, by task: {task: (R, C)} float32; masked slots hold any number.

    A model that speaks of one task among the positives of another (ESMM's conversion rate of
    clicked impressions) adds "<task>_given_<other>". Raises FloatingPointError if the logit of a
    real candidate is not finite, ValueError if an id is no row of its table.
    """
    score = _scorer(model, config)
    parts: list[dict[str, Any]] = []
    batches = evaluation_batches(
        config.schema,
        dataset.log,
        requests,
        batch_size=_BATCH_SIZE,
        history=history,
        requirements=model.requirements(config),
    )
    for batch in batches:
        require_rows(config.schema, batch)
        batch = {**batch, **even_preferences(model, config, len(batch["candidate_mask"]))}
        output = score(variables, served(batch))
        if isinstance(output, Slate):
            parts.append({config.schema.tasks[0]: _places(output, batch["candidate_mask"].shape)})
            continue
        given = {k: v for k, v in (output.log_probabilities or {}).items() if _GIVEN in k}
        parts.append({**output.tasks, **jax.tree.map(_log_odds, given)})
    # The schema's order: jit sorts the keys of a dict.
    names = sorted(parts[0], key=[*config.schema.tasks, *parts[0]].index)
    logits = {
        name: np.concatenate([np.asarray(part[name]) for part in parts])[: len(requests)]
        for name in names
    }
    real = requests.candidate >= 0
    for name, logit in logits.items():
        broken = int((~np.isfinite(logit[real])).sum())
        if broken:
            raise FloatingPointError(
                f"{broken} of {int(real.sum())} scores ({name}) are not finite: lower the learning "
                "rates, or check dense inputs."
            )
    return logits


def even_preferences(model: Model, config: Any, count: int) -> dict[str, np.ndarray]:
    """All objectives alike, for models that want to be told; nothing for others."""
    objectives = model.requirements(config).preferences
    if not objectives:
        return {}
    return {"preference": np.full((count, objectives), 1 / objectives, np.float32)}


def _places(slate: Slate, shape: tuple[int, ...]) -> np.ndarray:
    """Minus the slot that each candidate got, from 0; behind all others if it got none."""
    order = np.asarray(slate.order)
    found = np.full((shape[0], shape[1] + 1), -float(order.shape[1]), np.float32)
    # Empty slots write into a column of their own.
    np.put_along_axis(found, np.where(order >= 0, order, shape[1]), -np.arange(order.shape[1]), 1)
    return found[:, : shape[1]]


def _log_odds(log_probability: jax.Array) -> np.ndarray:
    """log p - log(1 - p)."""
    log_p = np.minimum(np.asarray(log_probability, np.float64), -1e-300)
    return log_p - np.log(-np.expm1(log_p))


def evaluate(
    model: Model,
    config: Any,
    variables: Variables,
    dataset: Dataset,
    requests: Requests,
    *,
    history: int,
    calibrations: Calibrations | None = None,
) -> dict[str, Any]:
    """Metrics of a model, with the breakdown by the dataset's segments.

    A ranking model gives one block of `metrics.evaluate`, or one per task if it has several; a
    retrieval model gives what `retrieval.evaluate_retrieval` says. A generator's slate is taken as
    an order, which has no log-loss or calibration. Probabilities are those of `calibrations`.
    """
    if model.KIND == "retrieval":
        return evaluate_retrieval(model, config, variables, dataset, requests, history=history)
    logits = predict(model, config, variables, dataset, requests, history=history)
    return judge(model, dataset, requests, logits, calibrations)


def gives_probabilities(model: Model) -> bool:
    """Whether its scores are log-odds, not vectors or places in an order."""
    return model.KIND not in ("retrieval", "generator")


def judge(
    model: Model,
    dataset: Dataset,
    requests: Requests,
    logits: dict[str, np.ndarray],
    calibrations: Calibrations | None = None,
) -> dict[str, Any]:
    """What `evaluate` says of a model whose logits, as `predict` gives them, are known."""
    blocks = {}
    for name, logit in logits.items():
        label, mask, weight = _labels(requests, name)
        logit = (calibrations or {}).get(name, Calibration())(logit)
        blocks[name] = metrics.evaluate(
            logit, label, mask, weight, requests.user, segments(dataset, requests)
        )
        if not gives_probabilities(model):
            blocks[name] = _orders_only(blocks[name])
    return blocks if len(blocks) > 1 else next(iter(blocks.values()))


def fit_calibrations(
    requests: Requests, logits: dict[str, np.ndarray], *, positive_rate: float = 0.0
) -> Calibrations:
    """A calibration of each logit of the validation requests.

    Args:
      requests: of validation.
      logits: of them, as `predict` gives them.
      positive_rate: share of positives where the model serves, of the first task; 0 is as here.
    """
    found = {}
    for name, logit in logits.items():
        x, y, weight, user = _examples(requests, name, logit)
        found[name] = choose_calibration(x, y, weight, user)
    if positive_rate:
        first = next(iter(logits))
        shift = _shift(requests, first, positive_rate)
        found[first] = found[first]._replace(shift=shift)
    return found


def require_prior(model: Model, dataset: Dataset, positive_rate: float) -> None:
    """Raises ValueError if a `positive_rate` could not be used after the training."""
    if positive_rate and not gives_probabilities(model):
        raise ValueError(
            f"positive_rate must be 0, got {positive_rate}: the model gives no probabilities."
        )
    if positive_rate:
        _shift(dataset.validation, dataset.schema.tasks[0], positive_rate)


def _shift(requests: Requests, task: str, positive_rate: float) -> float:
    label, mask, weight = _labels(requests, task)
    shift = shift_of(positive_rate, label[mask], None if weight is None else weight[mask])
    if shift is None:
        raise ValueError(
            f"positive_rate must be 0, got {positive_rate}: validation's {task!r} has one class, "
            "and no share to start from."
        )
    return shift


def reliabilities(
    requests: Requests, logits: dict[str, np.ndarray], calibrations: Calibrations
) -> dict[str, dict[str, Reliability]]:
    """{logit: {"as scored" and "calibrated": bins}}, for a reliability diagram."""
    found = {}
    for name, logit in logits.items():
        x, y, weight, _ = _examples(requests, name, logit)
        forms = {"as scored": x.astype(np.float64), "calibrated": calibrations[name](x)}
        found[name] = {
            form: reliability(metrics.sigmoid(odds), y, weight) for form, odds in forms.items()
        }
    return found


def _examples(
    requests: Requests, name: str, logit: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """Scores, labels, weights and users of the real candidates."""
    label, mask, weight = _labels(requests, name)
    user = np.broadcast_to(requests.user[:, None], mask.shape)[mask]
    return logit[mask], label[mask], None if weight is None else weight[mask], user


def _labels(requests: Requests, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Labels, mask and weights of a logit, a task's or one task's among another's positives."""
    task, _, condition = name.partition(_GIVEN)
    mask = requests.candidate >= 0
    mask = mask & (requests.label[condition] > 0) if condition else mask
    return requests.label[task], mask, requests.weight.get(task)


def _orders_only(block: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in block.items() if k not in _OF_PROBABILITIES}
    if "by" in kept:
        parts = kept["by"].items()
        kept["by"] = {n: {k: _orders_only(v) for k, v in part.items()} for n, part in parts}
    return kept


def exchange_histories(requests: Requests, seed: int = 0) -> Requests:
    """The same candidates and labels, each beside the user and the past of another request.

    A model that really uses histories falls to what candidates alone say, such as their
    popularity; one that does not fall has found the answer elsewhere.
    """
    order = draws.permutation(len(requests), seed)
    return dataclasses.replace(
        requests,
        user=requests.user[order],
        cut=requests.cut[order],
        time=requests.time[order],
    )


def score(block: dict[str, Any]) -> float:
    """Score that selects the best epoch, the larger the better.

    Recall@50 of a retrieval model, the AUC of a ranking model (the mean over its tasks), and
    minus the log-loss where no AUC is defined.
    """
    if "recall@50" in block:
        return block["recall@50"] or 0.0
    blocks = [block] if "auc" in block else list(block.values())
    defined = [one["auc"] for one in blocks if one["auc"] is not None]
    return float(np.mean(defined)) if defined else -blocks[0].get("logloss", 0.0)


def summary(block: dict[str, Any]) -> str:
    """The figures of a block that a progress line has room for."""
    if "recall@50" in block:
        return _listed({"recall@50": block["recall@50"], "NDCG@50": block["ndcg@50"]})
    if "auc" in block:
        shown = {"AUC": block["auc"], "GAUC": block["gauc"]}
        if "logloss" in block:  # An order has none.
            shown["logloss"] = block["logloss"]
        return _listed(shown)
    return _listed({f"AUC of {task}": one["auc"] for task, one in block.items()})


def _listed(values: dict[str, float | None]) -> str:
    shown = lambda value: "undefined" if value is None else f"{value:.4f}"
    return ", ".join(f"{name} {shown(value)}" for name, value in values.items())


def segments(dataset: Dataset, requests: Requests) -> dict[str, np.ndarray]:
    """{segment: (R,) label of each request}, for breaking metrics down."""
    result = {}
    for name, labels in dataset.segments.items():
        if name in requests.context:
            row = requests.context[name]
        else:
            row = dataset.log.users[name][requests.user]
        known, code = np.unique(row, return_inverse=True)
        # Objects, lest the longest text set the width of all.
        text = np.array([labels.get(int(one), "other") for one in known], object)
        result[name] = text[code]
    return result
