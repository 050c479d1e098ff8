"""`WanDecoder`: Wan's decoder with an operator and a width for each stage; the teacher has nothing changed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from fewstep.errors import UnsupportedModelError
from fewstep.families import unwrapped, wan_vae
from fewstep.families.wan_vae import Clip, DecoderStage
from torch import Tensor, nn

from .layers import (
    Attention,
    CausalConv,
    Frames,
    Memory,
    NormSilu,
    Operator,
    Residual,
    Upsample,
    channels_last,
)

CACHE = 1 << 20
"""Bytes of a feature map that are computed at once, or one frame: 0.5 to 1.5 MiB were fastest of 0.5 MiB to all."""
LEAST = 8
"""Channels that `preset` leaves: with 4 at full resolution a student of a small VAE lost 10 dB."""


@dataclass(frozen=True, kw_only=True)
class StudentStage(DecoderStage):
    """An up-block of a student, or of the teacher where nothing is changed."""

    operator: Operator = "dense"
    """Convolutions of the residual blocks."""
    narrow: bool = False
    """Fewer channels than the teacher has: then every block has a shortcut."""


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Everything that decides the shapes of a decoder's weights."""

    latent: int
    """Channels of a latent."""
    stages: tuple[StudentStage, ...]
    """Up-blocks in order; the middle block is as wide as the input of the first."""
    middle: Operator = "dense"
    """Convolutions of the middle block."""
    pool: int = 1
    """Rows and columns of pixels that one key and value of the attention stands for."""
    pixels: int = 3
    """Channels of a pixel."""

    def fields(self) -> dict[str, Any]:
        """The fields of `FlashVAED` that give this shape, together with the VAE's configuration."""
        operators = (self.middle, *(stage.operator for stage in self.stages))
        widths = tuple(stage.width if stage.narrow else 0 for stage in self.stages)
        return {"operators": operators, "widths": widths, "pool": self.pool}


def decoder_shape(
    config: Any, operators: tuple[Operator, ...] = (), widths: tuple[int, ...] = (), pool: int = 1
) -> DecoderShape:
    """Shape of the decoder of an ``AutoencoderKLWan`` with this configuration, or of a student of it.

    Args:
        config: the configuration of the VAE.
        operators: of the middle block and of each up-block; empty: all dense.
        widths: channels kept in each up-block, 0 for all; empty: all.
        pool: rows and columns that a key of the attention stands for, 1 or more.

    Raises:
        UnsupportedModelError: the VAE is like Wan 2.2's, see `fewstep.families.wan_vae.decoder_stages`.
        ValueError: not one operator and width for each block, more channels than there are, a width for a block that is
            separable or upsamples time, or no pool.
    """
    stages = wan_vae.decoder_stages(config)
    operators, widths = operators or ("dense",) * (len(stages) + 1), widths or (0,) * len(stages)
    if len(operators) != len(stages) + 1 or len(widths) != len(stages):
        raise ValueError(
            f"this decoder has a middle block and {len(stages)} up-blocks: it needs {len(stages) + 1} operators and "
            f"{len(stages)} widths, found {operators} and {widths}"
        )
    if pool < 1:
        raise ValueError(f"pool={pool}: a key stands for at least one row and column")
    if widths[0]:
        raise ValueError("the first up-block cannot be narrowed: its input is the middle block's")
    following = (*widths[1:], 0)
    student = [
        _student_stage(number, stage, operators[number + 1], widths[number], following[number])
        for number, stage in enumerate(stages)
    ]
    return DecoderShape(
        latent=config.z_dim, stages=tuple(student), middle=operators[0], pool=pool, pixels=config.out_channels
    )


def _student_stage(number: int, stage: DecoderStage, operator: Operator, kept: int, following: int) -> StudentStage:
    if not 0 <= kept <= min(stage.inside, stage.width):
        raise ValueError(
            f"up-block {number} has {stage.width} channels, and {stage.inside} enter: {kept} cannot be kept"
        )
    if kept and (operator == "separable" or stage.up == "time"):
        raise ValueError(f"up-block {number} is separable or upsamples time: it keeps all of its channels (width 0)")
    widths = {"inside": kept or stage.inside, "width": kept or stage.width, "outside": following or stage.outside}
    fields: dict[str, Any] = vars(stage) | widths
    return StudentStage(**fields, operator=operator, narrow=bool(kept))


def preset(config: Any) -> tuple[tuple[Operator, ...], tuple[int, ...]]:
    """Operators and widths by the rule of arXiv:2602.19161, section 3: stages behind the last that upsamples time.

    Those keep an eighth of their channels (Wan) and convolve each frame by itself; earlier ones keep their width and
    become separable. At least `LEAST` channels are ours.
    """
    stages = wan_vae.decoder_stages(config)
    last = max((number for number, stage in enumerate(stages) if stage.up == "time"), default=0)
    operators: list[Operator] = ["frame" if number > last else "separable" for number in range(len(stages))]
    widths = (min(stage.inside, max(LEAST, stage.width // 8)) for stage in stages[last + 1 :])
    return ("separable", *operators), (*(0,) * (last + 1), *widths)


class UpBlock(nn.Module):
    """One up-block; where frames are independent, a CPU computes few at a time, which stay in its cache."""

    def __init__(self, stage: StudentStage) -> None:
        super().__init__()
        self.width = stage.width
        self.by_frame = stage.operator == "frame" and stage.up != "time"
        widths = [stage.inside, *[stage.width] * stage.blocks]
        self.resnets = nn.ModuleList(Residual(a, b, stage.operator, stage.narrow) for a, b in pairwise(widths))
        ups = [Upsample(stage.width, stage.outside, stage.up == "time")] if stage.up else None
        self.upsamplers = nn.ModuleList(ups) if ups else None

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        """Frames at the next resolution."""
        few = max(1, CACHE // (x[:, :1].nbytes // x.shape[2] * self.width))
        if not self.by_frame or x.is_cuda or torch.is_grad_enabled() or x.shape[1] <= few:
            return self._through(x, memory)
        return torch.cat([self._through(part, memory) for part in x.split(few, 1)], 1)

    def _through(self, x: Frames, memory: Memory | None) -> Frames:
        for resnet in self.resnets:
            x = resnet(x, memory)
        return x if self.upsamplers is None else self.upsamplers[0](x, memory)


class MiddleBlock(nn.Module):
    """Residual, attention, residual."""

    def __init__(self, width: int, operator: Operator, pool: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Residual(width, width, operator) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(width, pool)])

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        """Frames of the same size."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x, memory)), memory)


class LatentsToPixels(nn.Module):
    """From what ``post_quant_conv`` leaves to pixels: ``vae.decoder`` of diffusers."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        first, last = shape.stages[0].inside, shape.stages[-1].width
        self.conv_in = CausalConv(shape.latent, first, 3)
        self.mid_block = MiddleBlock(first, shape.middle, shape.pool)
        self.up_blocks = nn.ModuleList(map(UpBlock, shape.stages))
        self.norm_out, self.conv_out = NormSilu(last), CausalConv(last, shape.pixels, 3)

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        """Frames ``[B, F, 3, H, W]``."""
        x = self.mid_block(self.conv_in(x, memory), memory)
        for block in self.up_blocks:
            x = block(x, memory)
        return self.conv_out(self.norm_out(x), memory)


class WanDecoder(nn.Module):
    """Latents to pixels: everything of a Wan VAE that Flash-VAED replaces."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.post_quant_conv = CausalConv(shape.latent, shape.latent, 1)
        self.decoder = LatentsToPixels(shape)

    def forward(self, latents: Clip, memory: Memory | None = None) -> Clip:
        """Pixels ``[B, 3, 1 + s_t (T - 1), s H, s W]``, not clamped.

        Args:
            latents: ``[B, z, T, H, W]``, not normalised.
            memory: of earlier latents of the same clip, brought up to date; then there are ``s_t T`` frames for all
                chunks but the first. None for a whole clip.

        Raises:
            ValueError: no latents, or those of another VAE.
        """
        if latents.ndim != 5 or latents.shape[1] != self.shape.latent or not latents.numel():
            raise ValueError(
                f"this decoder takes latents [b, {self.shape.latent}, t, h, w] with at least one frame, "
                f"found {tuple(latents.shape)}"
            )
        x = self.post_quant_conv(channels_last(latents.transpose(1, 2)))
        return self.decoder(x, memory).transpose(1, 2)


def decoder_weights(vae: Any) -> dict[str, Tensor]:
    """Weights of the decoder of `vae` and of the convolution before it, by their names in `WanDecoder`.

    Raises:
        UnsupportedModelError: adapters are in it, which a decoder in its place does not run.
    """
    weights: dict[str, Tensor] = {}
    for part in ("post_quant_conv", "decoder"):
        module = unwrapped(getattr(vae, part))
        if adapted := [name for name, inner in module.named_modules() if hasattr(inner, "base_layer")]:
            raise UnsupportedModelError(
                f"{part}.{adapted[0]} of this {type(vae).__name__} has an adapter (LoRA), which a decoder in its place "
                "does not run: merge it into the weights and unload it first"
            )
        weights |= {f"{part}.{name}".replace("_orig_mod.", ""): weight for name, weight in module.named_parameters()}
    return weights


def exact_decoder(vae: Any) -> WanDecoder:
    """The decoder of `vae` on the same weights (no copy), computed by the fastest exact formulation.

    Raises:
        UnsupportedModelError: the VAE is like Wan 2.2's.
    """
    with torch.device("meta"):
        decoder = WanDecoder(decoder_shape(vae.config))
    weights = decoder_weights(vae)
    decoder.load_state_dict(weights, strict=True, assign=True)
    return decoder.train(vae.training)
