"""Shared parts of the Triton kernels: devices, strides, tile sizes, loading, and one step of the online softmax."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

KEY_BYTES = 8192
"""Of one tile of keys: three of keys and of values in flight and a tile of queries fit 64 KiB of shared memory."""
LOG2_E = 1.4426950408889634


@triton.jit
def load_rows(start, rows, stride, there, D: tl.constexpr, DP: tl.constexpr, WIDE: tl.constexpr):
    """Rows of a matrix of ``D`` columns, padded to ``DP`` with 0; `WIDE` for an interpreter without bf16 products."""
    dim = tl.arange(0, DP)
    at = start + rows.to(tl.int64)[:, None] * stride + dim[None, :]
    values = tl.load(at, there[:, None] & (dim < D)[None, :], other=0.0)
    return values.to(tl.float32) if WIDE else values


@triton.jit
def online_step(output, most, total, query, keys, values, there, scale):
    """Output, greatest score and sum of exponentials with one more tile of keys and values; scores in units of log 2.

    The recurrence of online softmax (Milakov and Gimelshein, arXiv 1805.02867): earlier sums shrink by ``2^(m - m')``.
    """
    scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where(there[None, :], scores, -float("inf"))
    new = tl.maximum(most, tl.max(scores, 1))
    safe = tl.where(new == -float("inf"), 0.0, new)
    weights = tl.exp2(scores - safe[:, None])
    shrink = tl.exp2(most - safe)
    output = output * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    return output, new, total * shrink + tl.sum(weights, 1)


@triton.jit
def log_sum(most, total):
    """Natural logarithm of the sum of exponentials; -inf where there were no keys."""
    return (most + tl.log2(total)) * 0.6931471805599453


def tile(dim: int, size: int, rows: int) -> dict[str, int | bool]:
    """Constants of a kernel: head size, rows of queries and of keys in a tile by the bytes of an element."""
    padded = max(16, triton.next_power_of_2(dim))
    keys = max(16, min(64, KEY_BYTES // (padded * size)))
    least = 32 if size == 4 and padded > 64 else 16  # with fewer the compiler spills registers
    return {"D": dim, "DP": padded, "M": max(least, min(128 // size, triton.next_power_of_2(rows))), "N": keys}


def warps(dim: int, size: int) -> int:
    """Warps of a program that holds all its tiles at once: with four, long rows of fp32 spill registers."""
    return 8 if size == 4 and dim > 64 else 4


def interpreting() -> bool:
    """True where Triton runs its interpreter, on the CPU."""
    return not isinstance(load_rows, triton.JITFunction)


def check_device(tensor: Tensor) -> None:
    """Refuse a tensor that Triton cannot read.

    Raises:
        ValueError: it is not on a GPU and Triton's interpreter is off.
    """
    if not tensor.is_cuda and not interpreting():
        raise ValueError(f"the triton backend needs tensors on a GPU, found {tensor.device}, or TRITON_INTERPRET=1")


def on_gpu(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, with consecutive elements in the last dimension.

    Raises:
        ValueError: they are not on a GPU and Triton's interpreter is off.
    """
    check_device(tensors[0])
    return tuple(tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors)


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """All strides but those of the last dimensions."""
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:-1])
