"""Suite `last`: what its tables say of given slates, and pictures of what was measured."""

from pathlib import Path

import numpy as np
import pytest

from recjax.bench import results
from recjax.bench.reranking import preferences
from recjax.bench.suites import last
from recjax.train.data.market.slates import SLATES
from recjax.zoo.rerank.last import PRESETS

COMMITTED = Path(last.__file__).parents[1] / "results" / "last"


def test_cases_have_names_of_their_own():
    names = [case.name for case in last.CASES]
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match="Unknown case 'strang'; at hand are strong; weak"):
        last.run(["strang"])
    with pytest.raises(ValueError, match="--seeds must be >= 1, got 0"):
        last.run(["strong"], seeds=0)


def test_cautious_is_judged_with_its_shipped_constant():
    """The same in every regime: what is measured is what users get."""
    found = {way.name: way.run for way in last.WAYS}
    assert found["LAST, cautious, S = 8"] is last.parallel(PRESETS["cautious"])
    assert PRESETS["cautious"].pessimism == 1.0
    for regime in (last.STRONG, last.WEAK):
        assert regime.evaluators >= 3 and regime.preset in SLATES


def test_ndcg_is_one_for_the_best_order_only():
    attraction = np.array([[0.1, 0.9, 0.5, 0.2]])
    assert last._ndcg(attraction, np.array([[1, 2, 3]]), 3) == pytest.approx(1.0)
    gain, discount = 2 ** attraction[0] - 1, 1 / np.log2([2, 3, 4])
    mine, best = gain[[0, 1, 2]] @ discount, gain[[1, 2, 3]] @ discount
    assert last._ndcg(attraction, np.array([[0, 1, 2]]), 3) == pytest.approx(mine / best)


def test_differences_are_of_the_same_requests():
    rng = np.random.default_rng(0)
    names = [way.name for way in last.WAYS]
    found = []
    for _ in range(3):
        base = rng.normal(1.5, 1.0, 400)  # Requests differ far more than methods do.
        utility = dict.fromkeys(names, base + 0.01)
        utility[last.LAST.name] = base + 0.1 + rng.normal(0, 0.01, 400)
        found.append(last._Judged(utility, {}, {}))
    rows = {(row.method, row.metric): row for row in last._rows("strong", found)}
    versus = f"{last.LAST.name}, against {last.EQUAL.name}"
    assert rows[versus, "difference"].value == pytest.approx(0.09, abs=0.002)
    # 1,200 pairs that scatter by 0.01.
    assert rows[versus, "standard errors"].value == pytest.approx(0.09 / 0.01 * 1200**0.5, rel=0.1)


def test_weights_of_preferences_go_from_one_objective_to_the_other():
    assert len(preferences.OBJECTIVES) == len(preferences._WORTH) == 2
    assert preferences.WEIGHTS[0] == 0 and preferences.WEIGHTS[-1] == 1


@pytest.mark.parametrize(
    "path", sorted(COMMITTED.rglob("results.json")), ids=lambda p: p.parent.name
)
def test_a_picture_of_what_was_measured(path, tmp_path):
    _, rows = results.read(path)
    assert {row.case.removesuffix(", trust") for row in rows} <= {c.name for c in last.CASES}
    last.draw(rows, tmp_path / "last.png")
    assert (tmp_path / "last.png").read_bytes().startswith(b"\x89PNG")
