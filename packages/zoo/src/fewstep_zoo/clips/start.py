"""The VAE before training: the encoder finds principal components of patches, and no 3x3x3 convolution looks back.

A decoder that reads such latents learns within minutes. After 217 steps on single frames, held-out ones have 27.7 dB;
with an encoder of random weights, which has to keep what it sees first, 21.4.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .model import LATENT, SPACE

CONSTANT = 24.0
"""Value of a channel that all positions share, so that the last norm divides them by nearly the same number."""
STILL = 12
"""Components of the mean of two frames; the others are of their difference."""


@torch.no_grad()
def principal(vae: Any, frames: Float[Tensor, "n 3 h w"]) -> None:
    """Make latents of `vae` the components of patches of 4x4 pixels of `frames`; other channels stay as they are.

    The latent of a first frame holds its 16 components. That of two frames holds 12 of their mean and 4 of half of
    their difference. Through the last norm and activation each goes with both signs: ``silu(x) - silu(-x) = x``.
    The decoder makes features of two equal frames of it, and convolutions see one frame: what they learn from images
    holds for clips.
    """
    for name, weight in vae.named_parameters():
        if weight.ndim == 5 and weight.shape[2] == 3 and "time_conv" not in name:
            weight[:, :, :-1] = 0
    encoder = vae.encoder
    halved, quartered, mixed = encoder.down_blocks[1], encoder.down_blocks[3], encoder.down_blocks[2].conv_shortcut
    known, both = torch.eye(3 * 2 * 2), torch.cat([torch.eye(LATENT), -torch.eye(LATENT)])
    write(encoder.conv_in, centre(torch.eye(3)))
    write(halved.resample[1], F.pad(known.view(12, 3, 2, 2), (0, 1, 0, 1)))
    write(mixed, known.view(12, 12, 1, 1, 1))
    write(quartered.resample[1], F.pad(torch.einsum("oi,ichw->ochw", both, _components(frames)), (0, 1, 0, 1)))
    write(quartered.time_conv, torch.einsum("oi,tic->oct", both, over_time(LATENT, STILL))[..., None, None])
    for conv in (quartered.resample[1], quartered.time_conv):
        write(conv, conv.weight.new_zeros(1, 1, *conv.weight.shape[2:]), at=2 * LATENT, bias=CONSTANT)
    quartered.time_conv.weight[:, 2 * LATENT] = 0  # nobody reads the constant before the norm
    encoder.norm_out.gamma[: 2 * LATENT + 1] = CONSTANT / len(encoder.norm_out.gamma) ** 0.5
    write(encoder.conv_out, centre(both.T))
    write(vae.quant_conv, torch.eye(LATENT).view(LATENT, LATENT, 1, 1, 1))
    copied = vae.decoder.up_blocks[0].upsamplers[0].time_conv
    write(copied, F.pad(torch.eye(copied.in_channels).repeat(2, 1)[..., None, None, None], (0, 0, 0, 0, 2, 0)))
    write(vae.post_quant_conv, torch.eye(LATENT).view(LATENT, LATENT, 1, 1, 1))


def _components(frames: Tensor) -> Float[Tensor, "16 12 2 2"]:
    """The first components of patches, as a kernel over quarters of them: channels ``(colour, row, column)``."""
    patches = F.pixel_unshuffle(frames, SPACE).movedim(1, -1).flatten(0, -2)
    basis = torch.linalg.eigh(patches.T @ patches)[1].flip(1).T[:LATENT]
    split = basis.view(LATENT, 3, 2, 2, 2, 2)  # colour, row of the quarter, row in it, column of the quarter, ...
    return split.permute(0, 1, 3, 5, 2, 4).reshape(LATENT, 12, 2, 2)


def over_time(channels: int, still: int) -> Float[Tensor, "3 c c"]:
    """Shares of each component in each channel, for the three frames of a kernel; the first gives nothing.

    The first `still` channels are means of two frames, the others half of the difference of the first components.
    """
    kernel = torch.zeros(3, channels, channels)
    for channel in range(channels):
        mean = channel < still
        kernel[2, channel, channel if mean else channel - still] = 0.5
        kernel[1, channel, channel if mean else channel - still] = 0.5 if mean else -0.5
    return kernel


def centre(matrix: Float[Tensor, "o i"]) -> Float[Tensor, "o i 3 3 3"]:
    """A causal kernel that looks at one position of the newest frame."""
    return F.pad(matrix[..., None, None, None], (1, 1, 1, 1, 2, 0))


def write(
    conv: Any, kernel: Float[Tensor, "o i *k"], at: int = 0, bias: float = 0.0, rest: float | None = None
) -> None:
    """Let output channels from `at` on be those of `kernel`, which reads the first channels of the input only.

    With `rest` the weights and biases of all other output channels are that.
    """
    if rest is not None:
        conv.weight[:], conv.bias[:] = rest, rest
    rows = slice(at, at + len(kernel))
    conv.weight[rows] = 0
    conv.weight[rows, : kernel.shape[1]] = kernel
    conv.bias[rows] = bias
