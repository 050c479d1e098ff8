"""The student of LTX-Video's decoder (0.9.0): diffusers' own at a quarter of the late widths, with other convolutions.

Early residual blocks are depthwise separable and causal, although the teacher's convolutions look both ways; the blocks
of the last stage convolve each frame by itself; late blocks all have a shortcut (arXiv:2602.19161).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

EARLY = 2
"""Up-blocks that keep their width."""


class CausalSeparable(nn.Module):
    """Depthwise 3x3x3 behind two repetitions of the first frame, then 1x1x1."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(inside, inside, 3, padding=(0, 1, 1), groups=inside)
        self.pointwise = nn.Conv3d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[B, C, T, H, W]``."""
        return self.pointwise(self.depthwise(torch.cat([x[:, :, :1].expand(-1, -1, 2, -1, -1), x], 2)))


def decoder(config: Any) -> nn.Module:
    """The teacher's decoder for this configuration of an ``AutoencoderKLLTXVideo``, with new weights.

    Raises:
        ValueError: another generation of LTX: timestep-conditioned, causal, or not four up-blocks.
    """
    return _stock(config, tuple(config.decoder_block_out_channels))


def student(config: Any, keep: float = 0.25) -> nn.Module:
    """The student's decoder, with new weights; `keep` is the share of the channels of the late up-blocks.

    Raises:
        ValueError: see `decoder`; or no channel would be kept.
    """
    full = tuple(config.decoder_block_out_channels)
    late = len(full) - EARLY
    widths = tuple(int(width * keep) if number < late else width for number, width in enumerate(full))
    if min(widths) < 1:
        raise ValueError(f"keep={keep}: of {full} channels none would be left")
    made: Any = _stock(config, widths)
    for block in (made.mid_block, *made.up_blocks[:EARLY]):
        for resnet in block.resnets:
            _replace(resnet, CausalSeparable)
    for number, block in enumerate(made.up_blocks[EARLY:], EARLY):
        for resnet in block.resnets:
            _force_shortcut(resnet)
            if number == len(made.up_blocks) - 1:
                _replace(resnet, _frame)
    return made


def _stock(config: Any, widths: tuple[int, ...]) -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoDecoder3d

    if config.timestep_conditioning or config.decoder_causal or len(widths) != 4:
        raise ValueError(
            "only the decoder of LTX-Video 0.9.0 is known: not causal, not timestep-conditioned, four up-blocks"
        )
    return LTXVideoDecoder3d(
        in_channels=config.latent_channels,
        out_channels=config.out_channels,
        block_out_channels=widths,
        spatio_temporal_scaling=config.decoder_spatio_temporal_scaling,
        layers_per_block=config.decoder_layers_per_block,
        patch_size=config.patch_size,
        patch_size_t=config.patch_size_t,
        resnet_norm_eps=config.resnet_norm_eps,
        is_causal=False,
        inject_noise=config.decoder_inject_noise,
        upsample_residual=config.upsample_residual,
        upsample_factor=config.upsample_factor,
    )


def _replace(resnet: Any, made: Callable[[int, int], nn.Module]) -> None:
    resnet.conv1, resnet.conv2 = (made(conv.in_channels, conv.out_channels) for conv in (resnet.conv1, resnet.conv2))


def _frame(inside: int, outside: int) -> nn.Conv3d:
    return nn.Conv3d(inside, outside, (1, 3, 3), padding=(0, 1, 1))


def _force_shortcut(resnet: Any) -> None:
    channels = resnet.conv1.in_channels
    resnet.norm3 = nn.LayerNorm(channels, eps=1e-6)
    resnet.conv_shortcut = nn.Conv3d(channels, resnet.conv1.out_channels, 1)
