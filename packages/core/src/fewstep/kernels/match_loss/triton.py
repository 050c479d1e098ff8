"""The losses on a GPU: one pass reads x and T for the normaliser, one reads all three and writes the gradient."""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Signature

from .naive import match_weights

BLOCK = 1024
"""Elements of one program: 8 a thread with 4 warps; twice as many spill registers on sm_120."""


@triton.jit
def absolute_sums(out, x, teacher, size, BLOCK: tl.constexpr):
    """``out[b, j] = sum |x - T|`` over block ``j`` of sample ``b``."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    here = row * size + at
    there = at < size
    difference = tl.load(x + here, there, other=0.0).to(tl.float32) - tl.load(teacher + here, there, other=0.0)
    tl.store(out + row * tl.num_programs(1) + block, tl.sum(tl.abs(difference), 0))


@triton.jit
def squares_and_gradient(
    gradient, squares, x, critic, teacher, fisher, negative, size, scale, BLOCK: tl.constexpr
):  # fmt: skip
    """``scale (fisher_b (u - T) + negative_b (x - u))`` of a block, and its sums of ``(u - T)^2`` and ``(x - u)^2``."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    here = row * size + at
    there = at < size
    u = tl.load(critic + here, there, other=0.0).to(tl.float32)
    gap = u - tl.load(teacher + here, there, other=0.0)
    residual = tl.load(x + here, there, other=0.0) - u
    slope = tl.load(fisher + row) * gap + tl.load(negative + row) * residual
    tl.store(gradient + here, slope * scale, there)
    out = squares + (row * tl.num_programs(1) + block) * 2
    tl.store(out, tl.sum(gap * gap, 0))
    tl.store(out + 1, tl.sum(residual * residual, 0))


def match_loss(
    x: Float[Tensor, "b ..."],
    critic: Float[Tensor, "b ..."],
    teacher: Float[Tensor, "b ..."],
    sigma: Float[Tensor, " b"],
    *,
    lam: float,
    weights: Literal["official", "paper"] = "official",
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, "b ..."]]:
    """Same as `fewstep.kernels.match_loss.naive.match_loss`, in float32.

    Raises:
        ValueError: the tensors are not on a GPU and Triton's interpreter is off.
    """
    if not x.is_cuda and isinstance(absolute_sums, triton.JITFunction):
        raise ValueError(f"the triton backend needs tensors on a GPU, found {x.device}, or TRITON_INTERPRET=1")
    x, critic, teacher = (tensor.contiguous() for tensor in (x, critic, teacher))
    batch, size = x.shape[0], x[0].numel()
    grid = (batch, triton.cdiv(size, BLOCK))
    with torch.cuda.device_of(x):
        sums = torch.empty(grid, device=x.device)
        absolute_sums[grid](sums, x, teacher, size, BLOCK=BLOCK)
        normaliser = sums.sum(1) / size
        fisher, negative = match_weights(sigma.float(), normaliser, weights)
        gradient = torch.empty(x.shape, device=x.device)
        squares = torch.empty(*grid, 2, device=x.device)
        squares_and_gradient[grid](
            gradient, squares, x, critic, teacher, fisher, lam * negative, size, 1 / x.numel(), BLOCK=BLOCK
        )
        gap, residual = (squares.sum(1) / size).unbind(1)
    return normaliser, fisher * gap / 2, negative * residual / 2, gradient


def signatures() -> list[Signature]:
    """What to compile ahead of time: all of one dtype, and a bf16 sample beside float32 predictions."""
    found = []
    for sample, other in (("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "fp32")):
        inputs = {"x": f"*{sample}", "teacher": f"*{other}", "size": "i32"}
        found.append(Signature(name=f"normaliser-{sample}-{other}", function=absolute_sums,
                               types=inputs | {"out": "*fp32"}, constants={"BLOCK": BLOCK},
                               aligned=("out", "x", "teacher")))  # fmt: skip
        types = inputs | {"critic": f"*{other}", "gradient": "*fp32", "squares": "*fp32", "scale": "fp32"}
        pointers = ("gradient", "squares", "x", "critic", "teacher", "fisher", "negative")
        found.append(Signature(name=f"gradient-{sample}-{other}", function=squares_and_gradient,
                               types=types | {"fisher": "*fp32", "negative": "*fp32"}, constants={"BLOCK": BLOCK},
                               aligned=pointers))  # fmt: skip
    return found
