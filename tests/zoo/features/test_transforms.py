import numpy as np
import pytest

from recjax.zoo.features import Field, transforms
from recjax.zoo.features.transforms import robust

NAN = np.nan


def apply(text, values):
    return transforms.function(text)(np.array(values)).tolist()


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("identity", [1.5, NAN, -2.0], [1.5, 0.0, -2.0]),
        ("log1p", [np.e - 1, 0.0, 1 - np.e, NAN], [1.0, 0.0, -1.0, 0.0]),
        ("zscore(3, 2)", [3.0, 5.0, 0.0, NAN], [0.0, 1.0, -1.5, 0.0]),
        ("clip(-1, 5)", [-9.0, 0.5, 9.0, NAN], [-1.0, 0.5, 5.0, 0.0]),
        ("fill(7)", [1.0, NAN], [1.0, 7.0]),
        ("missing", [1.0, NAN, 0.0], [0.0, 1.0, 0.0]),
        # Boundaries at 0, 1/2 and 1; between them linear, outside them the ends.
        ("quantile(0, 10, 30)", [-1.0, 0.0, 5.0, 10.0, 20.0, 99.0], [0, 0, 0.25, 0.5, 0.75, 1]),
        # Half of the training values are 0: they stand for the middle of the lower half.
        ("quantile(0, 0, 0, 8, 16)", [0.0, 4.0, 8.0], [0.25, 0.625, 0.75]),
        ("quantile(0, 1)", [NAN], [0.0]),
        ("fill(8) | clip(0, 3) | zscore(1, 2)", [NAN, 1.0], [1.0, 0.0]),
        (" log1p|clip( -0.5 ,1e0 ) ", [np.e**3 - 1], [1.0]),
    ],
)
def test_values(text, values, expected):
    np.testing.assert_allclose(apply(text, values), expected, rtol=1e-6, atol=1e-7)


def test_any_shape_and_always_float32():
    result = transforms.function("zscore(1, 1)")(np.ones((2, 3), np.int64))
    assert result.shape == (2, 3) and result.dtype == np.float32
    assert transforms.function("log1p")(np.zeros(0)).shape == (0,)


def test_fitted_on_what_is_there():
    values = np.array([1.0, 3.0, NAN])
    assert transforms.fitted("zscore", values) == "zscore(2, 1)"
    # Each step learns from what the steps before it give: 0 and 2, then -1 and 1.
    assert transforms.fitted("clip(0, 2) | zscore", np.array([-5.0, 9.0])) == (
        "clip(0, 2) | zscore(1, 1)"
    )
    assert transforms.fitted("zscore(7, 2)", values) == "zscore(7, 2)"
    assert transforms.fitted("log1p", values) == "log1p"


@pytest.mark.parametrize("operation", ["zscore", "quantile"])
@pytest.mark.parametrize("values", [[], [NAN], [0.1], [0.1] * 100, [3.0, 4.0]])
def test_fitted_works_for_any_values_and_reads_back_exactly(operation, values):
    text = transforms.fitted(operation, np.array(values))
    assert transforms.fitted(text, np.array([100.0])) == text
    result = transforms.function(text)(np.array([*values, 0.1, 5.0, NAN]))
    assert np.all(np.isfinite(result))


def test_quantiles_of_any_distribution_are_uniform():
    values = np.random.default_rng(0).lognormal(0, 3, 10_000)
    shares = transforms.function(transforms.fitted("quantile", values))(values)
    counts, _ = np.histogram(shares, 10, (0, 1))
    assert np.all(np.abs(counts - 1000) < 150)
    # A rare outlier moves the mean and the deviation, hardly the quantiles.
    again = transforms.function(transforms.fitted("quantile", np.append(values, 1e30)))(values)
    assert np.abs(again - shares).max() <= 1 / 32 + 1e-6  # the last of 32 pieces, and only that
    assert np.median(np.abs(again - shares)) < 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exp", "unknown transform 'exp'; choose from clip, fill, .*zscore"),
        ("", "unknown transform ''"),
        ("log1p | ", "unknown transform ''"),
        ("clip", r"takes \(low, high\)"),
        ("clip(1)", r"takes \(low, high\)"),
        ("log1p(3)", r"takes \(nothing\)"),
        ("clip(3, 3)", "low must be < high, got 3.0 and 3.0"),
        ("clip(0, inf)", "must be finite"),
        ("clip(0, x)", "must be numbers"),
        ("zscore(0, 0)", "deviation must be > 0"),
        ("quantile(1, 0)", "rising"),
        ("clip(0, 1", "unknown transform"),
    ],
)
def test_bad_transforms(text, message):
    with pytest.raises(ValueError, match=message):
        transforms.parse(text)
    with pytest.raises(ValueError, match=f"Field user.f: .*{message}"):
        Field(name="f", role="user", kind="dense", transform=text)


def test_what_has_to_be_learnt_first():
    field = Field(name="f", role="user", kind="dense", transform="zscore")  # may be planned,
    with pytest.raises(ValueError, match="'zscore' has no parameters yet"):
        transforms.function(field.transform)  # but not used.


def test_robust_learns_from_the_middle_of_the_values():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, 100_000)
    median, deviation = robust.fit(values)
    assert median == pytest.approx(3, abs=0.03) and deviation == pytest.approx(2, rel=0.02)
    # A tenth of the values says "unknown": whatever it is, it moves little, and is cut elsewhere.
    for sentinel in (-1.0, 999_999.0, 1e12, -1e30, 3e38):
        marked = np.where(rng.random(100_000) < 0.1, sentinel, values).astype(np.float32)
        median, deviation = robust.fit(marked)
        assert abs(median - 3) < 0.4 and 1.8 < deviation < 2.6
    np.testing.assert_allclose(apply("robust(3, 2)", [3.0, 7.0, -1.0, NAN]), [0, 2, -2, 0])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (0, 1)),
        ([7.1] * 9, (7.1, 1)),
        ([0.1 + 0.2, 0.3, 0.3], (0.3, 1)),  # rounding errors are no spread
        # Most are 0: the quantiles of 5 % and 95 % count, 3.29 deviations apart.
        ([0] * 80 + [3.29] * 20, (0, 1)),
        # Fewer than a twentieth differ: the standard deviation is left.
        ([0] * 99 + [10], (0, np.sqrt(0.99))),
        ([0, 1.349, 2.698], (1.349, 1)),
    ],
)
def test_robust_by_hand(values, expected):
    found = robust.fit(np.array(values, float))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_robust_needs_a_deviation():
    with pytest.raises(ValueError, match="robust: deviation must be > 0, got 0"):
        transforms.function("robust(1, 0)")
