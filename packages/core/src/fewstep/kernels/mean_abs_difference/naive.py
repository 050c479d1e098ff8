"""The specification of `fewstep.kernels.mean_abs_difference`, in plain PyTorch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def mean_abs_difference(x: Float[Tensor, "b *dims"], y: Float[Tensor, "b *dims"]) -> Float[Tensor, " b"]:
    """``mean |x - y|`` of each sample, in float32, or in float64 where `x` is."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x.to(wide) - y.to(wide)).abs().flatten(1).mean(1)
