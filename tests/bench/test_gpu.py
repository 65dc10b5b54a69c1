"""Suite `gpu` where there is no GPU: all of it but the kernels, on small cases."""

import jax
import pytest

from recjax.bench import gpu
from recjax.kernels.dot_attention.cases import Case as Search
from recjax.kernels.target_attention.cases import Case as Attention

SIZES = {"name": "", "batch": 2, "candidates": 3, "length": 40, "width": 8}
SMALL = [
    gpu.Workload("attention", "target_attention", Attention(**SIZES, units=(6, 4))),
    gpu.Workload("search", "dot_attention", Search(**SIZES, intervals=5, interval_width=2)),
]


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(gpu, "_peers", lambda names: {})
    with pytest.raises(ValueError, match="needs a GPU; JAX sees cpu"):
        gpu.run()


@pytest.mark.parametrize("workload", SMALL, ids=lambda x: x.name)
def test_parity_of_what_is_right(workload, capsys):
    rows = gpu.parity(workload, "chunked")
    assert {row.method for row in rows} == {"float32", "float32 by TF32", "bfloat16"}
    assert {row.metric for row in rows} == {"units off", "gradients, units off"}
    assert all(row.value <= gpu.LIMIT for row in rows)
    assert "OFF" not in capsys.readouterr().out


def test_parity_of_what_is_wrong(monkeypatch, capsys):
    right = gpu.OPS["dot_attention"]
    wrong = right.run
    monkeypatch.setitem(
        gpu.OPS,
        "dot_attention",
        gpu.dataclasses.replace(right, run=lambda *args, **options: 1.5 * wrong(*args, **options)),
    )
    gpu.parity(SMALL[1], "chunked")
    assert "OFF" in capsys.readouterr().out


@pytest.mark.parametrize("workload", SMALL, ids=lambda x: x.name)
def test_times_and_rates(workload, capsys):
    seconds = gpu.times(workload, ("triton", "chunked", "reference"))
    assert not seconds["triton"] and "triton, forward: left out" in capsys.readouterr().out
    roof = gpu.roofline(side=64, numbers=1000)
    rows = gpu.rates(workload, "chunked", seconds["chunked"], roof)
    assert {row.metric for row in rows} == set(gpu.METRICS[:5])
    assert all(row.value > 0 for row in rows)
    assert gpu.rates(workload, "triton", seconds["triton"], roof) == []
