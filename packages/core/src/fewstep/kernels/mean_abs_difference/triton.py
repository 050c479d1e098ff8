"""Mean absolute difference on a GPU: both tensors are read once, sums are fp32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fewstep.kernels import Signature
from fewstep.kernels.tiles import check_device

BLOCK = 1024
"""Elements of one program: 8 a thread with 4 warps."""


@triton.jit
def absolute_sums(out, x, y, size, BLOCK: tl.constexpr):
    """``out[b, j] = sum |x - y|`` over block ``j`` of sample ``b``."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    here = row * size + at
    there = at < size
    difference = tl.load(x + here, there, other=0.0).to(tl.float32) - tl.load(y + here, there, other=0.0)
    tl.store(out + row * tl.num_programs(1) + block, tl.sum(tl.abs(difference), 0))


def mean_abs_difference(x: Float[Tensor, "b *dims"], y: Float[Tensor, "b *dims"]) -> Float[Tensor, " b"]:
    """Same as `fewstep.kernels.mean_abs_difference.naive.mean_abs_difference`, in float32.

    Raises:
        ValueError: the tensors are not on a GPU and Triton's interpreter is off.
    """
    check_device(x)
    x, y = x.contiguous(), y.contiguous()
    size = x[0].numel()
    sums = torch.empty(len(x), triton.cdiv(size, BLOCK), device=x.device)
    with torch.cuda.device_of(x):
        absolute_sums[sums.shape](sums, x, y, size, BLOCK=BLOCK)
    return sums.sum(1) / size


def signatures() -> list[Signature]:
    """Specialisations to compile ahead of time: all of one dtype, and a bf16 tensor beside a float32 one."""
    return [
        Signature(
            name=f"{one}-{other}",
            function=absolute_sums,
            types={"out": "*fp32", "x": f"*{one}", "y": f"*{other}", "size": "i32"},
            constants={"BLOCK": BLOCK},
            aligned=("out", "x", "y"),
        )
        for one, other in (("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "fp32"))
    ]
