"""The video VAE of Wan: whole clips to latents and back, and the shape of its decoder.

Whole clips pass the stock modules of an ``AutoencoderKLWan``, for training, and equal its frame loop. The loop of
diffusers runs one latent frame at a time and keeps the last two input frames of each causal convolution. That equals
one pass over the clip in which each convolution is padded once with two zero frames, the first frame passes
time-resampling unchanged, and the others go through it as a clip of their own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from einops import rearrange
from torch import nn

from ..data.video import Clip
from ..errors import UnsupportedModelError
from . import unwrapped


@dataclass(frozen=True, kw_only=True)
class DecoderStage:
    """One up-block of the decoder: residual blocks at one resolution, then perhaps a resampler."""

    inside: int
    """Channels that enter."""
    width: int
    """Channels of the residual blocks."""
    blocks: int
    """Residual blocks."""
    up: Literal["space", "time"] | None
    """The resampler doubles height and width, with ``time`` the frames too; None: there is none."""
    outside: int
    """Channels behind the resampler; 0 without one."""


def check(model: Any) -> Any:
    """Return the ``AutoencoderKLWan`` that `model` is, or that a pipeline holds.

    Raises:
        UnsupportedModelError: there is none.
    """
    vae = unwrapped(getattr(model, "vae", model))
    if type(vae).__name__ != "AutoencoderKLWan" or not isinstance(vae, nn.Module):
        kind = type(model).__name__
        described = kind if vae is model else f"{kind} with {type(vae).__name__} as its VAE"
        raise UnsupportedModelError(f"{described} is no AutoencoderKLWan and no pipeline with one")
    return vae


def decoder_stages(config: Any) -> tuple[DecoderStage, ...]:
    """Up-blocks of the decoder of an ``AutoencoderKLWan`` with this configuration, in order.

    Raises:
        UnsupportedModelError: it has residual resamplers, patches, or attention in its up-blocks, as in Wan 2.2.
    """
    if config.is_residual or config.patch_size is not None or config.attn_scales:
        raise UnsupportedModelError(
            "this AutoencoderKLWan has residual resamplers, patches or attention in its up-blocks (Wan 2.2); "
            "supported are decoders like Wan 2.1's"
        )
    base = config.decoder_base_dim or config.base_dim
    widths = [base * factor for factor in (config.dim_mult[-1], *config.dim_mult[::-1])]
    ups: list[Any] = ["time" if doubled else "space" for doubled in config.temperal_downsample[::-1]][: len(widths) - 2]
    return tuple(
        DecoderStage(
            inside=before // 2 if number else before,
            width=width,
            blocks=config.num_res_blocks + 1,
            up=up,
            outside=width // 2 if up else 0,
        )
        for number, ((before, width), up) in enumerate(zip(pairwise(widths), [*ups, None], strict=True))
    )


def factors(config: Any) -> tuple[int, int]:
    """Frames for each latent after the first, and pixels for each latent, each way."""
    return 2 ** sum(config.temperal_downsample), 2 ** (len(config.dim_mult) - 1)


def latent_shape(config: Any, frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
    """Shape ``[1, z, t, h, w]`` of the latents of one clip; sizes in pixels are cut to whole latents."""
    time, space = factors(config)
    return 1, config.z_dim, 1 + (frames - 1) // time, height // space, width // space


def latents_fingerprint(config: Any) -> str:
    """Shape and statistics of a VAE's latents in a few characters: those of two trainings differ."""
    statistics = hashlib.sha256(repr((list(config.latents_mean), list(config.latents_std))).encode()).hexdigest()[:8]
    return f"z{config.z_dim}-{config.base_dim}x{'.'.join(map(str, config.dim_mult))}-{statistics}"


def encode(vae: Any, pixels: Clip) -> Clip:
    """Mean of the posterior, ``[B, z, 1 + (F - 1) / s_t, H / s, W / s]``, not normalised; differentiable.

    Raises:
        ValueError: the number of frames is not 1 more than a multiple of the temporal factor.
    """
    factor, _ = factors(vae.config)
    if (pixels.shape[2] - 1) % factor:
        raise ValueError(f"a clip needs 1 + {factor} k frames, found {pixels.shape[2]}")
    encoder = vae.encoder
    x = encoder.conv_in(pixels)
    for layer in encoder.down_blocks:
        x = layer(x)
        if getattr(layer, "mode", None) == "downsample3d" and x.shape[2] > 1:
            x = torch.cat([x[:, :, :1], layer.time_conv(x)], 2)
    x = encoder.mid_block(x)
    moments = vae.quant_conv(encoder.conv_out(encoder.nonlinearity(encoder.norm_out(x))))
    return moments.chunk(2, 1)[0]


def decode(vae: Any, latents: Clip) -> Clip:
    """Pixels from latents that are not normalised, as ``vae.decode`` gives them before clamping; differentiable."""
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = resnet(x)
        if block.upsamplers is not None:
            x = block.upsamplers[0](_longer(block.upsamplers[0], x))
    return decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))


def _longer(resample: Any, x: Clip) -> Clip:
    """Two frames for each but the first, where `resample` upsamples time."""
    if resample.mode != "upsample3d" or x.shape[2] == 1:
        return x
    both = rearrange(resample.time_conv(x[:, :, 1:]), "b (two c) f h w -> b c (f two) h w", two=2)
    return torch.cat([x[:, :, :1], both], 2)


def tiny(*, seed: int = 0, **overrides: Any) -> Any:
    """A random ``AutoencoderKLWan`` of 3 latent channels and base width 8, in eval mode; 8x in space, 4x in time.

    Args:
        seed: of the weights; the global generator is left as it was.
        overrides: fields of its configuration.
    """
    from diffusers import AutoencoderKLWan

    fields = {"base_dim": 8, "z_dim": 3, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    statistics = {"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKLWan(**{**fields, **statistics, **overrides}).eval()
