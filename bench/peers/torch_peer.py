"""The peers of suite `gpu`: the same ops in PyTorch, eager and compiled.

`target_attention` is written as its peers write it, with [q, k, q - k, q * k] of every pair;
`dot_attention` is PyTorch's own; `pointer_decode` is a loop over the slots, which the compiler
unrolls.
"""

from collections.abc import Callable
import functools
import sys
from typing import Any

import jax
import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from ..gpu.kernels import DEFINITION_BYTES, Workload, rates, seconds_per_call, workloads
from ..ops import OPS
from ..results import Row
from ..suites.gpu import PEERS, main


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


def pointer_decode(
    state,
    keys,
    context,
    rows,
    query,
    query_bias,
    score,
    recurrent,
    bias,
    mask,
    to_state,
    to_keys,
    to_context,
    to_rows,
    steps,
    noise,
):
    """Log probabilities of one drawn list per step along a direction; in float32."""

    def along(x, direction):
        by = steps.float().view(1, -1, *[1] * (x.ndim - 1))
        return x.float()[:, None] + by * direction.float()[:, None]

    query, query_bias, score, recurrent, bias = (
        x.float() for x in (query, query_bias, score, recurrent, bias)
    )
    hidden, keys = along(state, to_state), along(keys, to_keys)
    context, rows = along(context, to_context), along(rows, to_rows)
    left = mask[:, None].expand(rows.shape[:3])
    real, gates, found = left[:, :, None], torch.zeros_like(rows[:, :, 0]), []
    for slot in range(noise.shape[2]):
        x_u, x_r, x_n = (gates + bias).chunk(3, dim=-1)
        h_u, h_r, h_n = (hidden @ recurrent).chunk(3, dim=-1)
        update = torch.sigmoid(x_u + h_u)
        new = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
        hidden = (1 - update) * hidden + update * new
        asked = torch.einsum("rsh,fha->rsfa", hidden, query) + query_bias
        liked = (torch.tanh(keys + asked[:, :, :, None]) * score[:, None]).sum(dim=-1)
        logit = liked.mean(dim=2).masked_fill(~left, -1e30)
        chosen = (logit + noise[:, :, slot].float()).argmax(dim=-1)
        picked = torch.nn.functional.one_hot(chosen, left.shape[2]).bool() & left
        logp = logit - logit.logsumexp(dim=-1, keepdim=True)
        found.append(torch.where(picked, logp, 0.0).sum(dim=-1))
        weight = torch.softmax(liked.masked_fill(~real, -1e30), dim=-1) * real
        gates = torch.einsum("rsfn,rsfng->rsg", weight, context)
        gates = gates + torch.where(picked[..., None], rows, 0.0).sum(dim=2)
        left = left & ~picked
    return torch.stack(found, dim=-1)


FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "target_attention": target_attention,
    "dot_attention": dot_attention,
    "pointer_decode": pointer_decode,
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
        # What decides a choice only, such as noise, has no gradient.
        inputs = [x for x in args if x.requires_grad]
        return out, torch.autograd.grad(out.sum(), inputs, allow_unused=True)


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
