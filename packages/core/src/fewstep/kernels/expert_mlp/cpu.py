"""Experts on a CPU: one matrix product per expert that has tokens, and none for the pairs that are skipped."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


class Packed(NamedTuple):
    """Weights of all experts once more, in the blocked layout of oneDNN."""

    gate_up: list[Tensor]
    down: list[Tensor]


def pack(gate_up: Float[Tensor, "e f2 h"], down: Float[Tensor, "e h f"], rows: int = 32) -> Packed:
    """Copy weights into the layout that oneDNN multiplies without packing them in each call.

    Args:
        gate_up: see `fewstep.kernels.expert_mlp.expert_mlp`; on a CPU.
        down: the same.
        rows: tokens for which the layout is chosen; others work too.

    Raises:
        ValueError: this build of torch has no oneDNN, the weights are not on a CPU, or this CPU has no such layout for
            their dtype.
    """
    if gate_up.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        raise ValueError(f"packing needs oneDNN and weights on a CPU, found {gate_up.device}")
    if not packs(gate_up.dtype):
        raise ValueError(f"this CPU cannot pack weights in {str(gate_up.dtype)[6:]}: float32 can be packed anywhere")
    with torch.no_grad():
        parts: list[Any] = [[_reorder(matrix.detach(), rows) for matrix in matrices] for matrices in (gate_up, down)]
    return Packed(*parts)


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of a dtype on this CPU: bfloat16 and float16 need AVX-512 or newer."""
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return dtype not in supported or bool(getattr(torch.ops.mkldnn, supported[dtype])())


def expert_mlp(
    x: Float[Tensor, "t h"],
    index: Int[Tensor, "t k"],
    weight: Float[Tensor, "t k"],
    gate_up: Float[Tensor, "e f2 h"],
    down: Float[Tensor, "e h f"],
    packed: Packed | None = None,
) -> Float[Tensor, "t h"]:
    """Same as `fewstep.kernels.expert_mlp.naive.expert_mlp`; `packed` makes it faster without another result."""
    if len(x) == 1:
        return _single(x, index[0].tolist(), weight[0], gate_up, down)
    experts, k = len(gate_up), index.shape[1]
    flat = index.reshape(-1)
    counts = torch.bincount(flat, minlength=experts + 1)[:experts].tolist()
    order = flat.argsort(stable=True)[: sum(counts)]  # skipped pairs sort behind the last expert
    token, scale = order // k, weight.reshape(-1, 1)[order].float()
    out, start = torch.zeros(x.shape), 0
    for expert, count in enumerate(counts):
        if count:
            some = slice(start, start := start + count)
            rows = x[token[some]]
            made = _gated(rows, gate_up[expert], down[expert], packed, expert)
            out.index_add_(0, token[some], made.float().mul_(scale[some]))
    return out.to(x.dtype)


def _single(x: Tensor, chosen: list[int], weight: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """One token: nothing to sort; a matrix and a vector are limited by memory, so that packing does not help."""
    out = torch.zeros(x.shape)
    for place, expert in enumerate(chosen):
        if expert < len(gate_up):
            out += _gated(x, gate_up[expert], down[expert], None, expert).float() * weight[place].float()
    return out.to(x.dtype)


def _gated(rows: Tensor, gate_up: Tensor, down: Tensor, packed: Packed | None, expert: int) -> Tensor:
    """``down (silu(gate x) * up x)`` of one expert."""
    both = F.linear(rows, gate_up) if packed is None else _multiply(rows, packed.gate_up[expert])
    gate, up = both.chunk(2, -1)
    hidden = F.silu(gate).mul_(up)
    return F.linear(hidden, down) if packed is None else _multiply(hidden, packed.down[expert])


def _reorder(matrix: Tensor, rows: int) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), rows)


def _multiply(rows: Tensor, matrix: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, matrix, None, "none", [], "")
