"""What suite `gpu` times in PyTorch is the same op."""

import jax
import numpy as np
import pytest
import torch

from recjax.bench.gpu import kernels
from recjax.bench.peers import torch_peer
from recjax.kernels.dot_attention.cases import Case as Search
from recjax.kernels.pointer_decode.cases import Case as Lists
from recjax.kernels.target_attention.cases import Case as Attention

SIZES = {"name": "", "batch": 2, "candidates": 3, "length": 20, "width": 8}
SMALL = [
    kernels.Workload("attention", "target_attention", Attention(**SIZES)),
    kernels.Workload("search", "dot_attention", Search(**SIZES, intervals=5, interval_width=2)),
    kernels.Workload(
        "lists",
        "pointer_decode",
        Lists(name="", batch=2, candidates=5, slots=4, lanes=3, width=8, units=4),
    ),
]


@pytest.mark.parametrize("workload", SMALL, ids=lambda x: x.name)
def test_the_same_numbers(workload):
    found = jax.jit(workload.call("reference"))(*workload.case.inputs())
    expected = np.asarray(kernels.OPS[workload.op].shown(found))
    args = torch_peer.arguments(workload, "cpu", torch.float32)
    got = torch_peer.FUNCTIONS[workload.op](*args).numpy()
    # Without any behaviour PyTorch's softmax says what it likes.
    assert np.allclose(got[0], expected[0], atol=1e-5)


@pytest.mark.parametrize("workload", SMALL, ids=lambda x: x.name)
def test_what_is_timed(workload, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: f)
    monkeypatch.setattr(kernels, "SECONDS_PER_REPEAT", 0.0)
    found = torch_peer.measure(workload, "cpu")
    assert list(found) == ["torch", "torch, compiled"]
    assert all(set(x) == {"forward", "with gradients"} for x in found.values())


def test_every_op_that_has_a_peer_is_timed():
    assert {x.op for x in kernels.workloads()} == set(torch_peer.FUNCTIONS)
