"""The peers of suite `gpu`: the same ops in PyTorch, eager and compiled.

    python -m recjax.bench.torch_peer WORKLOADS SECONDS

prints seconds of calls as JSON, by workload and method. `target_attention` is written as its peers
write it, with [q, k, q - k, q * k] of every pair; `dot_attention` is PyTorch's own.
"""

from collections.abc import Callable
import json
import sys
import time
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from .gpu import DEFINITION_BYTES, REPEATS, main_inputs, workloads


def target_attention(query, keys, mask, k1, b1, a1, k2, b2, a2, out_kernel, out_bias):
    """DIN's activation unit with PReLU, and its pooling; weights as matrices and rows."""
    shape = (*query.shape[:2], *keys.shape[1:])
    q, k = query[:, :, None].expand(shape), keys[:, None].expand(shape)
    x = torch.cat([q, k, q - k, q * k], dim=-1)
    for kernel, bias, alpha in ((k1, b1, a1), (k2, b2, a2)):
        x = x @ kernel + bias
        x = torch.where(x > 0, x, alpha * x)
    score = (x @ out_kernel + out_bias) * mask[:, None]
    return torch.einsum("bcl,bld->bcd", score, keys)


def dot_attention(query, keys, mask, interval, table):
    """Softmax attention over keys and their intervals' rows."""
    z = torch.cat([keys, table[interval.long()]], dim=-1)
    return scaled_dot_product_attention(query, z, z, attn_mask=mask[:, None], scale=1.0)


PEERS: dict[str, Callable[..., torch.Tensor]] = {
    "target_attention": target_attention,
    "dot_attention": dot_attention,
}


def arguments(op: str, leaves: tuple, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """The leaves of a workload's inputs as tensors, in the order that the peer takes them."""
    if op == "target_attention":
        # Per layer kernel, bias, alpha, mean, variance: there is no Dice here.
        query, keys, mask, *rest = leaves
        leaves = (query, keys, mask, *rest[0:3], *rest[5:8], *rest[10:])
    tensors = [torch.tensor(x, device=device) for x in leaves]
    return [x.to(dtype) if x.is_floating_point() else x for x in tensors]


def measure(name: str, device: str, deadline: float) -> dict[str, dict[str, list[float]]]:
    """Seconds of calls by method: forward, and "with gradients"; without what does not fit."""
    workload = next(x for x in workloads() if x.name == name)
    case, f = workload.case, PEERS[workload.op]
    pairs = case.batch * case.candidates * case.length
    if workload.op == "target_attention" and 16 * pairs * case.width > DEFINITION_BYTES:
        return {}
    args = arguments(workload.op, main_inputs(workload), device, torch.bfloat16)
    found: dict[str, Any] = {}
    for method, call in (("torch", f), ("torch, compiled", torch.compile(f))):
        found[method] = {}
        for what in ("forward", "with gradients"):
            if time.perf_counter() > deadline:
                return found
            try:
                found[method][what] = _seconds(call, args, device, what == "with gradients")
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
    return found


def _seconds(f, args, device: str, differentiate: bool) -> list[float]:
    args = [x.detach().requires_grad_(differentiate and x.is_floating_point()) for x in args]

    def once():
        with torch.set_grad_enabled(differentiate):
            out = f(*args)
            if differentiate:
                torch.autograd.grad(out.sum(), [x for x in args if x.requires_grad])
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(2):
        once()
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        once()
        taken.append(time.perf_counter() - start)
    return taken


def _main(arguments: list[str]) -> None:
    names, seconds = json.loads(arguments[0]), float(arguments[1])
    deadline = time.perf_counter() + seconds
    if not torch.cuda.is_available():
        print(json.dumps({}))
        return
    print(json.dumps({name: measure(name, "cuda", deadline) for name in names}))


if __name__ == "__main__":
    _main(sys.argv[1:])
