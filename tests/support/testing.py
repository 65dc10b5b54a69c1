"""Shared test helpers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import cli

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason="needs the data sets in ../shared/data"
)


def assert_close(actual, expected, *, ulps=4.0):
    """Checks `actual` against a float64 `expected`, in units of its own dtype's eps.

    The budget is `ulps * eps(actual.dtype) * max|expected|`, leaf by leaf. With float32
    accumulation this hardly depends on the length of a reduction. Gradients that cancel (through
    a softmax, say) may need 16; write the reason where you do that.
    """
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        e = np.asarray(e, np.float64)
        assert a.shape == e.shape, f"shape {a.shape}, expected {e.shape}"
        scale = np.max(np.abs(e), initial=0.0) or 1.0
        unit = float(jnp.finfo(a.dtype).eps) * scale
        worst = np.max(np.abs(np.asarray(a, np.float64) - e), initial=0.0) / unit
        assert worst <= ulps, f"off by {worst:.1f} units of {a.dtype} (limit {ulps})"


def rejected(capsys, *arguments):
    """The one line that a bad command prints."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr()
    assert code == 2, shown.err
    assert shown.out == ""
    assert shown.err.count("\n") == 1 and "Traceback" not in shown.err, shown.err
    return shown.err
