"""The specification of `fewstep.kernels.causal_depthwise`, in plain PyTorch."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def causal_depthwise(
    x: Float[Tensor, "b t c h w"], weight: Float[Tensor, "c 1 3 3 3"], bias: Float[Tensor, " c"], past: int
) -> Float[Tensor, "b T c h w"]:
    """Each channel by its own 3x3x3 kernel; zeros before the first frame; the first `past` frames are only history.

    y_{t,c} = b_c + sum_{i in 0..2} W_{c,i} * x_{t+i-2,c}
    """
    padded = F.pad(x.transpose(1, 2), (1, 1, 1, 1, 2, 0))
    return F.conv3d(padded, weight, bias, groups=x.shape[2]).transpose(1, 2)[:, past:]
