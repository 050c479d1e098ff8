"""The VAE of panning worlds before training: each stage of the encoder keeps the principal components of its input."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..clips.model import LATENT
from ..clips.start import CONSTANT, centre, over_time, write

MEANS = 3 / 4
"""Share of the channels that hold means of two frames; the others hold differences."""


@torch.no_grad()
def principal(vae: Any, clips: Float[Tensor, "n 3 f h w"]) -> None:
    """Make latents of `vae` principal components of `clips`, stage by stage; no 3x3x3 convolution looks back.

    Through the last norm and activation each goes with both signs: ``silu(x) - silu(-x) = x``.
    """
    for name, weight in vae.named_parameters():
        if weight.ndim == 5 and weight.shape[2] == 3 and "time_conv" not in name:
            weight[:, :, :-1] = 0
    encoder = vae.encoder
    write(encoder.conv_in, centre(torch.eye(3)), rest=0)
    seen = encoder.conv_in(clips)
    last = len(encoder.down_blocks) - 1
    for number, layer in enumerate(encoder.down_blocks):
        if hasattr(layer, "resample"):
            _halve(layer, seen)
        elif number == last:
            _signed(layer, seen)
        elif layer.conv_shortcut is not None and hasattr(layer.conv_shortcut, "weight"):
            write(layer.conv_shortcut, torch.eye(seen.shape[1])[..., None, None, None], rest=0)
        seen = layer(seen)
        if getattr(layer, "mode", None) == "downsample3d":
            channels = seen.shape[1]
            shares = over_time(channels, round(MEANS * channels))
            write(layer.time_conv, shares.permute(1, 2, 0)[..., None, None])
            seen = torch.cat([seen[:, :, :1], layer.time_conv(seen)], 2)
    both = torch.cat([torch.eye(LATENT), -torch.eye(LATENT)])
    encoder.norm_out.gamma[: 2 * LATENT + 1] = CONSTANT / len(encoder.norm_out.gamma) ** 0.5
    write(encoder.conv_out, centre(both.T))
    write(vae.quant_conv, torch.eye(LATENT).view(LATENT, LATENT, 1, 1, 1))
    write(vae.post_quant_conv, torch.eye(LATENT).view(LATENT, LATENT, 1, 1, 1))
    for block in vae.decoder.up_blocks:
        if block.upsamplers is not None and hasattr(block.upsamplers[0], "time_conv"):
            copied = block.upsamplers[0].time_conv
            twice = torch.eye(copied.in_channels).repeat(2, 1)[..., None, None, None]
            write(copied, F.pad(twice, (0, 0, 0, 0, 2, 0)))


def _halve(layer: Any, seen: Tensor) -> None:
    """Let the resampler keep the first components of squares of two by two."""
    conv, channels = layer.resample[1], seen.shape[1]
    squares = F.pixel_unshuffle(seen.transpose(1, 2).flatten(0, 1), 2).movedim(1, -1).flatten(0, -2)
    basis = _components(squares, conv.out_channels)
    write(conv, F.pad(basis.view(-1, channels, 2, 2), (0, 1, 0, 1)), rest=0)


def _signed(layer: Any, seen: Tensor) -> None:
    """Let the last widening keep the first components with both signs, and a constant for the norm."""
    basis = _components(seen.movedim(1, -1).flatten(0, -2), LATENT)
    both = torch.cat([basis, -basis])[..., None, None, None]
    write(layer.conv_shortcut, both, rest=0)
    layer.conv_shortcut.bias[len(both)] = CONSTANT


def _components(rows: Float[Tensor, "n d"], count: int) -> Float[Tensor, "c d"]:
    return torch.linalg.eigh(rows.T @ rows)[1].flip(1).T[:count]
