"""`WanDecoder`: Wan's decoder with an operator and a width for each stage; the teacher has nothing changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fewstep.errors import UnsupportedModelError
from jaxtyping import Float
from torch import Tensor, nn

from .causal import Memory
from .layers import Attention, Causal, Norm, Operator, Pointwise, Residual, Upsample, channels_last, name_layers

Clip = Float[Tensor, "b c t h w"]
CACHE = 1 << 20
"""Bytes of a feature map that are computed at once, or one frame: 0.5 to 1.5 MiB were fastest of 0.5 MiB to all."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One up-block: residual blocks at one resolution, then perhaps an upsampler."""

    inside: int
    """Channels that enter."""
    width: int
    """Channels of the residual blocks."""
    blocks: int
    operator: Operator = "dense"
    narrow: bool = False
    """Fewer channels than the teacher has: then every block has a shortcut."""
    up: str | None = None
    """``space``, ``time`` (both) or None."""
    outside: int = 0
    """Channels after the upsampler."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Everything that decides the shapes of a decoder."""

    latent: int
    """Channels of a latent."""
    width: int
    """Channels of the middle block."""
    stages: tuple[Stage, ...]
    middle: Operator = "dense"
    pool: int = 1
    """Rows and columns of pixels that one key and value of the attention stands for."""
    pixels: int = 3

    @property
    def time(self) -> int:
        """Frames for each latent after the first."""
        return 2 ** sum(stage.up == "time" for stage in self.stages)

    @property
    def space(self) -> int:
        """Pixels for each latent, each way."""
        return 2 ** sum(stage.up is not None for stage in self.stages)


def spec_of(config: Any, operators: tuple[Operator, ...] = (), widths: tuple[int, ...] = (), pool: int = 1) -> Spec:
    """The decoder of an ``AutoencoderKLWan`` with this configuration, or a student of it.

    Args:
        config: the configuration of the VAE.
        operators: of the middle block and of each up-block; empty: all dense.
        widths: channels kept in each up-block, 0 for all; empty: all.
        pool: rows and columns that a key of the attention stands for, 1 or more.

    Raises:
        UnsupportedModelError: Wan 2.2's residual blocks, or attention in up-blocks.
        ValueError: not one operator and width for each block, more channels than there are, a width for a block that is
            separable or upsamples time, or no pool.
    """
    if config.is_residual or config.patch_size is not None or config.attn_scales:
        raise UnsupportedModelError(
            "this AutoencoderKLWan has residual resamplers, patches or attention in its up-blocks (Wan 2.2); "
            "supported are decoders like Wan 2.1's"
        )
    base = config.decoder_base_dim or config.base_dim
    dims = [base * factor for factor in (config.dim_mult[-1], *config.dim_mult[::-1])]
    last = len(dims) - 2
    operators, widths = operators or ("dense",) * (last + 2), widths or (0,) * (last + 1)
    longer = tuple(config.temperal_downsample)[::-1]
    _check(operators, widths, dims)
    if pool < 1:
        raise ValueError(f"pool={pool}: a key stands for at least one row and column")
    stages = []
    for number, (inside, outside) in enumerate(zip(dims, dims[1:], strict=False)):
        if widths[number] and (operators[number + 1] == "separable" or (number < last and longer[number])):
            raise ValueError(
                f"up-block {number} is separable or upsamples time: it keeps all of its channels (width 0)"
            )
        kept, following = widths[number], 0 if number == last else widths[number + 1]
        full_in = inside if number == 0 else inside // 2
        stages.append(
            Stage(
                inside=kept or full_in,
                width=kept or outside,
                blocks=config.num_res_blocks + 1,
                operator=operators[number + 1],
                narrow=bool(kept),
                up=None if number == last else "time" if longer[number] else "space",
                outside=0 if number == last else following or outside // 2,
            )
        )
    return Spec(latent=config.z_dim, width=dims[0], stages=tuple(stages), middle=operators[0], pool=pool)


def _check(operators: tuple[str, ...], widths: tuple[int, ...], dims: list[int]) -> None:
    blocks = len(dims) - 1
    if len(operators) != blocks + 1 or len(widths) != blocks:
        raise ValueError(
            f"this decoder has a middle block and {blocks} up-blocks: it needs {blocks + 1} operators and "
            f"{blocks} widths, found {operators} and {widths}"
        )
    if widths[0]:
        raise ValueError("the first up-block cannot be narrowed: its input is the middle block's")
    for number, (kept, before, width) in enumerate(zip(widths, dims, dims[1:], strict=False)):
        if not 0 <= kept <= min(before // 2, width):
            raise ValueError(f"up-block {number} has {width} channels, and {before // 2} enter: {kept} cannot be kept")


class Up(nn.Module):
    """One up-block; where frames are independent, a CPU computes few at a time, which stay in its cache."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.width = stage.width
        self.by_frame = stage.operator == "frame" and stage.up != "time"
        widths = [stage.inside, *[stage.width] * stage.blocks]
        self.resnets = nn.ModuleList(
            Residual(a, b, stage.operator, stage.narrow) for a, b in zip(widths, widths[1:], strict=False)
        )
        up = [Upsample(stage.width, stage.outside, stage.up == "time")] if stage.up else None
        self.upsamplers = nn.ModuleList(up) if up else None

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        """Frames at the next resolution."""
        few = max(1, CACHE // (x[:, :1].nbytes // x.shape[2] * self.width))
        if not self.by_frame or x.is_cuda or torch.is_grad_enabled() or x.shape[1] <= few:
            return self._through(x, memory)
        return torch.cat([self._through(part, memory) for part in x.split(few, 1)], 1)

    def _through(self, x: Tensor, memory: Memory | None) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x, memory)
        return x if self.upsamplers is None else self.upsamplers[0](x, memory)


class Middle(nn.Module):
    """Residual, attention, residual."""

    def __init__(self, width: int, operator: Operator, pool: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Residual(width, width, operator) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(width, pool)])

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        """Frames of the same size."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x, memory)), memory)


class Decoder(nn.Module):
    """From what ``post_quant_conv`` leaves to pixels; weights are named as in diffusers."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.conv_in = Causal(spec.latent, spec.width)
        self.mid_block = Middle(spec.width, spec.middle, spec.pool)
        self.up_blocks = nn.ModuleList(map(Up, spec.stages))
        self.norm_out = Norm(spec.stages[-1].width)
        self.conv_out = Causal(spec.stages[-1].width, spec.pixels)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        """Frames ``[B, F, 3, H, W]``."""
        x = self.mid_block(self.conv_in(x, memory), memory)
        for block in self.up_blocks:
            x = block(x, memory)
        return self.conv_out(self.norm_out(x), memory)


class WanDecoder(nn.Module):
    """Latents to pixels: everything of a Wan VAE that Flash-VAED replaces."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.post_quant_conv = Pointwise(spec.latent, spec.latent)
        self.decoder = Decoder(spec)
        name_layers(self)

    def forward(self, latents: Clip, memory: Memory | None = None) -> Clip:
        """Pixels ``[B, 3, 1 + s_t (T - 1), s H, s W]``, not clamped.

        Args:
            latents: not normalised, ``[B, z, T, H, W]``.
            memory: of earlier latents of the same clip, brought up to date; then there are ``s_t T`` frames for all
                chunks but the first. None for a whole clip.

        Raises:
            ValueError: no latents, or those of another VAE.
        """
        if latents.ndim != 5 or latents.shape[1] != self.spec.latent or not latents.numel():
            raise ValueError(
                f"this decoder takes latents [b, {self.spec.latent}, t, h, w] with at least one frame, "
                f"found {tuple(latents.shape)}"
            )
        x = self.post_quant_conv(channels_last(latents.transpose(1, 2)))
        return self.decoder(x, memory).transpose(1, 2)


def of_vae(vae: Any) -> WanDecoder:
    """The teacher: the decoder of `vae` on the same weights (no copy), computed by the fastest exact formulation."""
    with torch.device("meta"):
        decoder = WanDecoder(spec_of(vae.config))
    weights: Mapping[str, Tensor] = {
        **{f"post_quant_conv.{name}": value for name, value in vae.post_quant_conv.named_parameters()},
        **{f"decoder.{name}": value for name, value in vae.decoder.named_parameters()},
    }
    decoder.load_state_dict(weights, strict=True, assign=True)
    return decoder.train(vae.training)
