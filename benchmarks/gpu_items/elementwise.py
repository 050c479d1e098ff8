"""Kernels that are bound by memory, and the upsampling convolution, at the sizes of real models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fewstep.kernels import Kernel
from fewstep.kernels.block_means import KERNEL as MEANS
from fewstep.kernels.block_means import block_means
from fewstep.kernels.causal_depthwise import KERNEL as DEPTHWISE
from fewstep.kernels.causal_depthwise import causal_depthwise
from fewstep.kernels.mean_abs_difference import KERNEL as DIFFERENCE
from fewstep.kernels.mean_abs_difference import mean_abs_difference
from fewstep.kernels.rms_silu import KERNEL as NORM
from fewstep.kernels.rms_silu import rms_silu
from fewstep.kernels.unit_score import KERNEL as SCORE
from fewstep.kernels.unit_score import unit_score
from fewstep.kernels.upsample_conv import KERNEL as UPSAMPLE
from fewstep.kernels.upsample_conv import upsample_conv
from fewstep.kernels.weighted_residuals import KERNEL as RESIDUALS
from fewstep.kernels.weighted_residuals import weighted_residuals
from torch import Tensor

from .bench import Bench


def against_naive(
    bench: Bench, kernel: Kernel, public: Callable[..., Any], tensors: tuple[Tensor, ...], flops: float, made: int,
    **options: Any,
) -> None:  # fmt: skip
    """Time a kernel against its plain PyTorch specification, and both over the floor.

    Args:
        bench: of the item.
        kernel: checked first.
        public: the operation.
        tensors: inputs, all read once at least.
        flops: operations.
        made: bytes that are written.
        options: of the call.
    """
    bench.gate(kernel)
    calls = {
        "naive": lambda: public(*tensors, backend="naive", **options),
        kernel.name: lambda: public(*tensors, **options),
    }
    floor = bench.floor(flops, sum(tensor.nbytes for tensor in tensors) + made)
    sizes = {"shapes": [list(tensor.shape) for tensor in tensors], **options}
    bench.compare("forward", kernel.name, calls, ["naive"], dict.fromkeys(calls, floor), **sizes)


@torch.no_grad()
def scores(bench: Bench) -> None:
    """Block scores of one query and means of runs, at 32K keys."""
    h, g, d, n = bench.pick((32, 8, 128, 32768), (4, 2, 16, 256))
    query, keys = bench.randn(h, d), bench.randn(g, n, d)
    for score in ("dot", "unit_softmax"):
        against_naive(bench, SCORE, unit_score, (query, keys), 0, 4 * n // 64, block=64, unit=8, score=score)
    against_naive(bench, MEANS, block_means, (keys[None],), 0, 4 * g * n // 64 * d, block=64)


@torch.no_grad()
def losses(bench: Bench) -> None:
    """Match losses of a batch of Wan's latents, 81 frames at 480p."""
    shape = bench.pick((2, 16, 21, 60, 104), (2, 3, 2, 4, 4))
    one, two, three = (torch.randn(shape, device=bench.device) for _ in range(3))
    weights = tuple(torch.rand(len(one), device=bench.device) for _ in range(2))
    against_naive(bench, RESIDUALS, weighted_residuals, (one, two, three, *weights), 0, one.nbytes)
    against_naive(bench, DIFFERENCE, mean_abs_difference, (one, two), 0, 4 * len(one))


@torch.no_grad()
def vae_kernels(bench: Bench) -> None:
    """Norm with activation, depthwise and upsampling convolutions at the sizes of the Wan VAE's decoder at 480p."""
    frames, (height, width) = bench.pick((8, (480, 832)), (2, (8, 12)))
    narrow, wide = bench.pick((96, 192), (8, 16))
    x, gamma = bench.randn(frames, narrow, height, width), bench.randn(narrow)
    against_naive(bench, NORM, rms_silu, (x, gamma), 0, x.nbytes)
    x = bench.randn(1, frames, wide, height // 2, width // 2)
    depthwise = x, bench.randn(wide, 1, 3, 3, 3), bench.randn(wide)
    against_naive(bench, DEPTHWISE, causal_depthwise, depthwise, 54 * x.numel(), x.nbytes)
    x, weight = bench.randn(frames, wide, height // 2, width // 2), bench.randn(narrow, wide, 3, 3)
    made = frames * narrow * height * width
    against_naive(bench, UPSAMPLE, upsample_conv, (x, weight, bench.randn(narrow)), 8 * made * wide, 2 * made)
