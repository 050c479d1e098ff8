"""Weighted residuals on a GPU: one pass reads all three tensors and writes the gradient, sums are fp32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Signature
from fewstep.kernels.tiles import check_device

BLOCK = 1024
"""Elements of one program: 8 a thread with 4 warps; twice as many spill registers on sm_120."""


@triton.jit
def squares_and_gradient(
    gradient, squares, u, first, second, first_weight, second_weight, size, scale, BLOCK: tl.constexpr
):  # fmt: skip
    """``scale (w_1 (u - first) + w_2 (u - second))`` of a block, and its two sums of squares."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    here = row * size + at
    there = at < size
    own = tl.load(u + here, there, other=0.0).to(tl.float32)
    one = own - tl.load(first + here, there, other=0.0)
    two = own - tl.load(second + here, there, other=0.0)
    slope = tl.load(first_weight + row) * one + tl.load(second_weight + row) * two
    tl.store(gradient + here, slope * scale, there)
    out = squares + (row * tl.num_programs(1) + block) * 2
    tl.store(out, tl.sum(one * one, 0))
    tl.store(out + 1, tl.sum(two * two, 0))


def weighted_residuals(
    u: Float[Tensor, "b *dims"],
    first: Float[Tensor, "b *dims"],
    second: Float[Tensor, "b *dims"],
    first_weight: Float[Tensor, " b"],
    second_weight: Float[Tensor, " b"],
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, "b *dims"]]:
    """Same as `fewstep.kernels.weighted_residuals.naive.weighted_residuals`, in float32.

    Raises:
        ValueError: the tensors are not on a GPU and Triton's interpreter is off.
    """
    check_device(u)
    u, first, second = (tensor.contiguous() for tensor in (u, first, second))
    weights = (weight.float().contiguous() for weight in (first_weight, second_weight))
    batch, size = len(u), u[0].numel()
    gradient = torch.empty(u.shape, device=u.device)
    squares = torch.empty(batch, triton.cdiv(size, BLOCK), 2, device=u.device)
    with torch.cuda.device_of(u):
        squares_and_gradient[squares.shape[:2]](
            gradient, squares, u, first, second, *weights, size, 1 / u.numel(), BLOCK=BLOCK
        )
    one, two = (squares.sum(1) / size).unbind(1)
    return one, two, gradient


def signatures() -> list[Signature]:
    """Specialisations to compile ahead of time: all of one dtype, and a bf16 reference beside float32 tensors."""
    weights = ("first_weight", "second_weight")
    return [
        Signature(
            name=f"{reference}-{other}",
            function=squares_and_gradient,
            types={"u": f"*{other}", "first": f"*{other}", "second": f"*{reference}", "size": "i32", "scale": "fp32"}
            | dict.fromkeys(("gradient", "squares", *weights), "*fp32"),
            constants={"BLOCK": BLOCK},
            aligned=("gradient", "squares", "u", "first", "second", *weights),
        )
        for reference, other in (("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "fp32"))
    ]
