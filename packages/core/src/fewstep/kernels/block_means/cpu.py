"""Sums and means of runs of tokens on a CPU: keys are read once, in their own dtype and layout."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def block_means(keys: Float[Tensor, "b g n d"], *, block: int) -> Float[Tensor, "b g m d"]:
    """Same as `fewstep.kernels.block_means.naive.block_means`."""
    means = torch.empty(*keys.shape[:2], -(-keys.shape[2] // block), keys.shape[3])
    for sequence, out in zip(keys, means, strict=True):
        out.copy_(block_sums(sequence, block)).div_(block)
    return means


def block_sums(keys: Float[Tensor, "g n d"], block: int) -> Float[Tensor, "g m d"]:
    """`block` times the mean key of each run of `block` tokens, in fp32; the last run may be shorter."""
    if block == 1:
        return keys.float()
    g, n, d = keys.shape
    full = n // block
    sums = torch.empty(g, -(-n // block), d, device=keys.device)
    # head by head: torch widens a 16-bit input before it sums, and the copy of one head stays in cache
    for head, out in zip(keys, sums, strict=True):
        torch.sum(head[: full * block].unflatten(0, (full, block)), 1, dtype=torch.float32, out=out[:full])
    if n % block:
        sums[:, full] = keys[:, full * block :].mean(1, dtype=torch.float32) * block
    return sums
