"""Bins of predicted and observed shares, and their picture."""

import numpy as np
import pytest

from recjax.train.evaluation.reliability import reliability
from recjax.train.plots import reliability_diagram


def test_bins_by_hand():
    p, y = np.array([0.91, 0.11, 0.31, 0.71]), np.array([1, 0, 1, 1])
    weight = np.array([1.0, 3.0, 1.0, 1.0])
    bins = reliability(p, y, weight, bins=2)
    # Half of the weight is the example of 0.11.
    np.testing.assert_allclose(bins.predicted, [0.11, (0.31 + 0.71 + 0.91) / 3])
    np.testing.assert_allclose(bins.observed, [0.0, 1.0])
    np.testing.assert_allclose(bins.mass, [0.5, 0.5])
    upper = np.sqrt(0.31 * 0.69 + 0.71 * 0.29 + 0.91 * 0.09) / 3
    np.testing.assert_allclose(bins.deviation, [np.sqrt(9 * 0.11 * 0.89) / 3, upper])
    assert bins.error == pytest.approx(0.5 * 0.11 + 0.5 * (1 - 1.93 / 3))
    assert bins.noise == pytest.approx(np.sqrt(2 / np.pi) * bins.deviation.sum() / 2)
    held = {5: 0.5, 15: 1 / 6, 35: 1 / 6, 45: 1 / 6}  # In steps of 1/50.
    np.testing.assert_allclose(bins.spread, [held.get(k, 0) for k in range(50)])


def test_bins_that_hold_nothing_are_left_out():
    bins = reliability(np.full(4, 0.5), np.array([0, 1, 0, 1]), bins=20)
    assert [len(x) for x in bins[:4]] == [1] * 4
    assert bins.mass[0] == 1 and bins.observed[0] == 0.5
    for nothing in ([], [np.nan]):
        bins = reliability(np.array(nothing), np.zeros(len(nothing)))
        assert not len(bins.mass) and np.isnan(bins.error) and np.isnan(bins.noise)


@pytest.fixture
def figures(monkeypatch):
    """Figures as they are saved."""
    from matplotlib.figure import Figure

    kept, genuine = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (kept.append(f), genuine(f, *a, **k)))
    return kept


def test_the_picture_shows_each_logit_before_and_after(tmp_path, figures):
    p, y = np.linspace(0.05, 0.3, 500), np.arange(500) % 5 == 0
    before, after = reliability(p, y), reliability(np.full(500, 0.2), y)
    found = {task: {"as scored": before, "calibrated": after} for task in ("click", "buy")}
    reliability_diagram(found, tmp_path / "a.png", title="din on a market")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    (figure,) = figures
    upper, lower = figure.axes[:2], figure.axes[2:]
    assert figure.get_suptitle() == "din on a market"
    assert [one.get_title() for one in upper] == ["click", "buy"] and len(lower) == 2
    diagonal, *lines = upper[0].get_lines()
    assert diagonal.get_slope() == 1 and diagonal.get_xy1() == (0, 0)
    drawn = [line.get_xydata() for line in lines]
    np.testing.assert_allclose(drawn[0], np.stack([before.predicted, before.observed], axis=1))
    np.testing.assert_allclose(drawn[1], np.stack([after.predicted, after.observed], axis=1))
    bars = [container.lines[2][0].get_segments() for container in upper[0].containers]
    lengths = [[bar[1, 1] - bar[0, 1] for bar in bars_of] for bars_of in bars]
    np.testing.assert_allclose(lengths[0], 4 * before.deviation)
    np.testing.assert_allclose(lengths[1], 4 * after.deviation)
    texts = [text.get_text() for text in upper[0].get_legend().get_texts()]
    assert texts == [
        f"as scored: error {before.error:.4f}, by chance {before.noise:.4f}",
        f"calibrated: error {after.error:.4f}, by chance {after.noise:.4f}",
    ]
    shares = [patch.get_data().values for patch in lower[0].patches]
    np.testing.assert_allclose(shares, [before.spread, after.spread])
    assert [patch.get_fill() for patch in lower[0].patches] == [True, False]


def test_no_examples_no_picture(tmp_path):
    nothing = reliability(np.zeros(0), np.zeros(0))
    reliability_diagram({"click": {"as scored": nothing}}, tmp_path / "a.png", title="none")
    assert not list(tmp_path.iterdir())
