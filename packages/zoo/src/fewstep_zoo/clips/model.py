"""``clips-wan-vae``: an `AutoencoderKLWan` of small width, with the stages and the widening last block of Wan 2.1."""

from __future__ import annotations

from typing import Any

import torch

SPACE, TIME = 4, 2
"""Factors by which latents are smaller than clips."""
LATENT = 16
"""Channels of a latent, as in Wan 2.1."""
CONFIG = {
    "base_dim": 24,
    "z_dim": LATENT,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
    "scale_factor_spatial": SPACE,
    "scale_factor_temporal": TIME,
}
LOG_VARIANCE = -8.0
"""Log variance of the posterior, everywhere: the encoder is trained without sampling."""


def vae(seed: int = 0, **overrides: Any) -> Any:
    """The `AutoencoderKLWan` before training; `overrides` are fields of its configuration."""
    from diffusers import AutoencoderKLWan

    statistics = {"latents_mean": [0.0] * LATENT, "latents_std": [1.0] * LATENT}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = AutoencoderKLWan(**{**CONFIG, **statistics, **overrides})
    with torch.no_grad():
        half = made.config.z_dim
        made.quant_conv.weight[half:] = 0
        made.quant_conv.bias[half:] = LOG_VARIANCE
        for name, weight in made.named_parameters():
            if ".conv2." in name or ".proj." in name:  # residual blocks start as the identity, and learn sooner
                weight.zero_()
    return made
