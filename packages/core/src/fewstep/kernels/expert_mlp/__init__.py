"""Experts of a mixture on the (token, expert) pairs that are kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.kernels import Case, Kernel

from . import naive


def expert_mlp(
    x: Float[Tensor, "t h"],
    index: Int[Tensor, "t k"],
    weight: Float[Tensor, "t k"],
    gate_up: Float[Tensor, "e f2 h"],
    down: Float[Tensor, "e h f"],
    *,
    packed: Any = None,
    backend: str | None = None,
) -> Float[Tensor, "t h"]:
    """Weighted sum of SwiGLU experts for each token, where any number of pairs may be skipped.

        y_t = sum over i with e_ti < E of  w_ti  W_down[e_ti] (silu(W_gate[e_ti] x_t) * (W_up[e_ti] x_t))

    (Sparsely-gated mixture of experts, arXiv 1701.06538, equation 1; SwiGLU, arXiv 2002.05202, equation 6.)

    Args:
        x: tokens.
        index: ``e``, experts of each token, in ``[0, E]``, all different; ``E`` marks a pair that is skipped. Skipped
            pairs cost nothing, and the weights of experts without a pair are never read.
        weight: ``w``, routing weights; those of skipped pairs are not read.
        gate_up: ``W_gate`` above ``W_up``, ``[E, 2 f, h]``.
        down: ``W_down``, ``[E, h, f]``.
        packed: result of `fewstep.kernels.expert_mlp.cpu.pack` for these weights: faster on a CPU.
        backend: ``naive``, ``cpu`` or ``triton``; None picks by device.

    Returns:
        ``[t, h]`` in the dtype of `x`, without gradient; 0 for a token whose pairs are all skipped.

    Raises:
        ValueError: shapes do not fit, or there is no such backend, in one sentence.
        ImportError: the backend was asked for by name and is not installed.
    """
    _validate(x, index, weight, gate_up, down)
    chosen = backend or KERNEL.chosen_backend(x.device)
    options = {"packed": packed} if packed is not None and chosen == "cpu" else {}
    tensors = (tensor.detach() for tensor in (x, index, weight, gate_up, down))
    return KERNEL.function(chosen)(*tensors, **options)


def _validate(x: Tensor, index: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor) -> None:
    fits = x.ndim == 2 and index.shape == weight.shape and index.shape[:1] == x.shape[:1] and gate_up.ndim == 3
    fits = fits and down.shape == (len(gate_up), x.shape[1], gate_up.shape[1] // 2) and gate_up.shape[2] == x.shape[1]
    if not fits:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (x, index, weight, gate_up, down))
        raise ValueError(f"expected [t, h], [t, k], [t, k], [e, 2 f, h] and [e, h, f], found {shapes}")
    if index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(f"index must hold whole numbers, found {index.dtype}")


def _cases() -> Iterator[Case]:
    """Odd sizes, experts without tokens, one token, nothing skipped and everything skipped, three dtypes."""
    sizes = (
        # t, k, e, h, f, share that is skipped
        (7, 2, 4, 32, 32, 0.4),
        (1, 4, 16, 40, 24, 0.5),
        (1, 2, 5, 33, 17, 1.0),
        (37, 4, 16, 64, 32, 0.0),
        (131, 8, 32, 48, 56, 0.75),
        (19, 3, 7, 129, 65, 0.6),
        (300, 2, 3, 32, 96, 0.3),
    )
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    generator = torch.Generator().manual_seed(0)
    for number, (t, k, e, h, f, skipped) in enumerate(sizes):
        for dtype in dtypes if number < 2 else (torch.float32, dtypes[1 + number % 2]):
            index = torch.rand(t, e, generator=generator).topk(k).indices
            index[torch.rand(t, k, generator=generator) < skipped] = e
            weight = torch.rand(t, k, generator=generator)
            shapes = ((t, h), (e, 2 * f, h), (e, h, f))
            x, gate_up, down = (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5 for shape in shapes)
            args = (x.mul(shapes[0][1] ** 0.5).to(dtype), index, weight.to(dtype), gate_up.to(dtype), down.to(dtype))
            name = f"t{t} k{k} e{e} h{h} f{f} skipped {skipped} {str(dtype)[6:]}"
            yield Case(name, args, {}, tolerance=0.0 if dtype == torch.float32 else 2e-2)


KERNEL = Kernel(
    name="expert-mlp",
    target=f"{__name__}:KERNEL",
    naive=naive.expert_mlp,
    fast={"cpu": f"{__name__}.cpu:expert_mlp", "triton": f"{__name__}.triton:expert_mlp"},
    cases=_cases,
    signatures=f"{__name__}.triton:signatures",
)
