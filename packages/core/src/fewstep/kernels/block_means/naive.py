"""The specification of `fewstep.kernels.block_means`, in plain PyTorch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def block_means(keys: Float[Tensor, "b g n d"], *, block: int) -> Float[Tensor, "b g m d"]:
    """Mean of each run of `block` tokens in fp32; a ragged last run is the mean of the tokens it has.

    M_j = 1/|R_j| sum_{t in R_j} k_t      R_j = {t : t // block = j}
    """
    n = keys.shape[2]
    padded = F.pad(keys.float(), (0, 0, 0, -n % block)).unflatten(2, (-1, block))
    count = (n - block * torch.arange(padded.shape[2], device=keys.device)).clamp(max=block)
    return padded.sum(3) / count[:, None]
