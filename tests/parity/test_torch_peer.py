"""What suite `gpu` times in PyTorch is the same op."""

import jax
import numpy as np
import pytest
import torch

from recjax.bench import torch_peer
from recjax.bench.gpu import OPS, Workload, main_inputs, workloads
from recjax.kernels.dot_attention.cases import Case as Search
from recjax.kernels.target_attention.cases import Case as Attention

SIZES = {"name": "", "batch": 2, "candidates": 3, "length": 20, "width": 8}
SMALL = [
    Workload("attention", "target_attention", Attention(**SIZES)),
    Workload("search", "dot_attention", Search(**SIZES, intervals=5, interval_width=2)),
]


@pytest.mark.parametrize("workload", SMALL, ids=lambda x: x.name)
def test_the_same_numbers(workload):
    op, inputs = OPS[workload.op], workload.case.inputs()
    expected = np.asarray(jax.jit(op.call(workload.case, "reference"))(*inputs))
    args = torch_peer.arguments(workload.op, main_inputs(workload), "cpu", torch.float32)
    got = torch_peer.PEERS[workload.op](*args).numpy()
    # Without any behaviour PyTorch's softmax says what it likes.
    assert np.allclose(got[0], expected[0], atol=1e-5)


def test_what_is_timed(monkeypatch):
    monkeypatch.setattr(torch_peer, "workloads", lambda: SMALL)
    monkeypatch.setattr(torch, "compile", lambda f: f)
    found = torch_peer.measure("search", "cpu", float("inf"))
    assert list(found) == ["torch", "torch, compiled"]
    assert all(set(x) == {"forward", "with gradients"} for x in found.values())
    assert torch_peer.measure("search", "cpu", 0.0) == {"torch": {}}
    assert {x.op for x in workloads()} == set(torch_peer.PEERS)
