"""The specification of `fewstep.kernels.rms_silu`, in plain PyTorch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 1e-12
"""Norms below this count as this, as in ``torch.nn.functional.normalize``."""


def rms_silu(x: Float[Tensor, "n c h w"], gamma: Float[Tensor, " c"]) -> Float[Tensor, "n c h w"]:
    """``SiLU(sqrt(c) x / max(|x|, 1e-12) * gamma)`` with the norm over channels, in float32 at least."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = F.normalize(exact, dim=1, eps=SMALLEST) * x.shape[1] ** 0.5
    return F.silu(normed * gamma.to(exact.dtype)[:, None, None]).to(x.dtype)
