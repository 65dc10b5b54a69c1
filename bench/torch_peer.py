"""The peers of suite `gpu`: the same ops in PyTorch, eager and compiled.

`target_attention` is written as its peers write it, with [q, k, q - k, q * k] of every pair;
`dot_attention` is PyTorch's own.
"""

from collections.abc import Callable
import functools
import sys
from typing import Any

import jax
import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from .gpu import DEFINITION_BYTES, OPS, PEERS, Workload, main, rates, seconds_per_call, workloads
from .results import Row


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
    z = torch.cat([keys, table[interval.long()]], dim=-1)[:, None]
    # Four axes: with three PyTorch has no fused kernel.
    found = scaled_dot_product_attention(
        query[:, None], z, z, attn_mask=mask[:, None, None], scale=1.0
    )
    return found[:, 0]


FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "target_attention": target_attention,
    "dot_attention": dot_attention,
}


def arguments(workload: Workload, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """The leaves of a workload's inputs as tensors, in the order that the peer takes them."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(workload.case.inputs())]
    if workload.op == "target_attention":
        # Per layer kernel, bias, alpha, mean, variance: there is no Dice here.
        query, keys, mask, *rest = leaves
        leaves = [query, keys, mask, *rest[0:3], *rest[5:8], *rest[10:]]
    tensors = [torch.tensor(x, device=device) for x in leaves]
    return [x.to(dtype) if x.is_floating_point() else x for x in tensors]


def measure(workload: Workload, device: str) -> dict[str, dict[str, list[float]]]:
    """Seconds per call by method: "forward", "with gradients"; without what does not fit."""
    f, size = FUNCTIONS[workload.op], OPS[workload.op].largest(workload.case)
    args = arguments(workload, device, torch.bfloat16)
    torch.compiler.reset()  # Or it would look for code that serves all shapes so far.
    compiled = torch.compile(f, dynamic=False)
    found: dict[str, dict[str, list[float]]] = {}
    for method, call in (("torch", f), ("torch, compiled", compiled)):
        found[method] = {}
        for name, copies in (("forward", 1), ("with gradients", 4)):
            if workload.op == "target_attention" and copies * size > DEFINITION_BYTES:
                continue
            try:
                once = functools.partial(_once, call, args, name == "with gradients")
                found[method][name] = seconds_per_call(once, functools.partial(_wait, device))
            except Exception as e:  # Whatever it is, the others can be measured.
                print(f"  {method}, {name}: left out, {type(e).__name__}: {str(e)[:200]}")
    return found


def _once(f: Callable[..., Any], args: list[torch.Tensor], differentiate: bool) -> Any:
    args = [x.detach().requires_grad_(differentiate and x.is_floating_point()) for x in args]
    with torch.set_grad_enabled(differentiate):
        out = f(*args)
        if not differentiate:
            return out
        return out, torch.autograd.grad(out.sum(), [x for x in args if x.requires_grad])


def _wait(device: str, out: Any) -> None:
    del out
    if device == "cuda":
        torch.cuda.synchronize()


def rows_of(part: str) -> list[Row]:
    """One part, in this process."""
    workload = next(x for x in workloads() if part == f"{PEERS}: {x.name}")
    found = measure(workload, "cuda")
    return [row for method in found for row in rates(workload, method, found[method], None)]


if __name__ == "__main__":
    main(sys.argv[1:], rows_of)
