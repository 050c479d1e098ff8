"""Operations of decoding with a Wan VAE, layer by layer, counted on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..roofline import Cost, Kind, Operation, Phase, Workload
from . import wan_vae
from .wan_vae_cost import on_meta

NAME = "VAE decode"
STOCK = {"WanRMS_norm": 8, "SiLU": 2, "WanUpsample": 5, "WanResidualBlock": 3, "WanCausalConv3d": 4}
"""Passes over its output that a layer of diffusers makes besides its convolution: unfused norms, padding, casts."""


def stock(config: Any, work: Workload) -> Cost:
    """Decoding as diffusers does it: latent by latent, by 3-D convolutions.

    Args:
        config: configuration of an ``AutoencoderKLWan``.
        work: frames, height, width, batch and dtype count.
    """
    vae = on_meta(config)
    shape = wan_vae.latent_shape(vae.config, work.frames, work.height, work.width)
    return decoding(vae, partial(wan_vae.decode, vae), shape, work, kind="conv3d", passes=STOCK, chunks=shape[2])


@torch.no_grad()
def decoding(
    module: nn.Module,
    decode: Callable[[Tensor], Any],
    latents: tuple[int, ...],
    work: Workload,
    *,
    kind: Kind,
    passes: Mapping[str, float],
    chunks: int = 1,
    launches: int = 6,
) -> Cost:
    """The phase and memory of decoding latents with any decoder.

    Args:
        module: on the meta device.
        decode: decodes latents with `module`.
        latents: their shape ``[1, z, t, h, w]``; `work` says how many there are.
        work: batch and dtype count.
        kind: of the convolutions over several frames; others are ``conv2d``.
        passes: by class of a layer, how often its output is read or written besides its convolution.
        chunks: pieces that the clip is decoded in, each of which launches every layer and is in memory by itself.
        launches: operations of a layer.
    """
    found: list[Operation] = []
    largest = 0.0

    def count(part: Any, args: tuple, out: Any) -> None:
        nonlocal largest
        if not isinstance(out, Tensor) or not args or not isinstance(args[0], Tensor):
            return
        largest = max(largest, args[0].numel() + out.numel())
        more = work.element * work.batch * passes.get(type(part).__name__, 0) * out.numel()
        found.extend(work.batch * one for one in _layer(part, args[0], out, kind, work.element))
        calls = launches * chunks if more or _weight(part) else 0
        found.append(Operation(kind="elementwise", bytes=more, launches=calls))

    parts = [(name, part) for name, part in module.named_modules() if not name.startswith(("encoder", "quant_conv"))]
    handles = [part.register_forward_hook(count) for name, part in parts if name]
    try:
        decode(torch.empty(latents, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    own = sum(weight.numel() for name, part in parts for weight in part.parameters(recurse=False))
    memory = {"VAE": work.element * own, "VAE activations": work.batch * work.element * largest / chunks}
    return Cost(phases=(Phase(name=NAME, operations=tuple(found)),), memory=memory)


def _weight(part: Any) -> bool:
    return isinstance(weight := getattr(part, "weight", None), Tensor) and weight.ndim >= 4


def _layer(part: Any, seen: Tensor, out: Tensor, kind: Kind, element: int) -> list[Operation]:
    """Convolutions, and the attention of a layer called so, of one clip."""
    if type(part).__name__ in ("Attention", "WanAttentionBlock"):
        return [_attention(part, seen, element)]
    if not _weight(part):
        return []
    weight, flops = part.weight, 2 * out.numel() * part.weight[0].numel()
    moved = element * (seen.numel() + out.numel() + weight.numel())
    apart = getattr(part, "groups", 1) > 1  # each channel by itself: nothing but traffic
    deep = weight.ndim == 5 and weight.shape[2] > 1
    if deep and kind == "conv2d":  # one 2-D convolution for each frame of the kernel, and two sums
        taps = weight.shape[2]
        sums = Operation(kind="elementwise", bytes=element * 3 * (taps - 1) * out.numel())
        return [Operation(kind="elementwise" if apart else "conv2d", flops=flops, bytes=taps * moved), sums]
    return [Operation(kind=kind if weight.ndim == 5 else "conv2d", flops=flops, bytes=moved)]


def _attention(part: Any, seen: Tensor, element: int) -> Operation:
    """Attention over the pixels of each frame: ``4 F P (P / pool^2) C``."""
    images = seen.ndim == 5 and type(part).__name__ == "Attention"  # [b t c h w]; diffusers has [b c t h w]
    frames, channels = (seen.shape[1], seen.shape[2]) if images else (seen.shape[2], seen.shape[1])
    pixels, pool = seen.shape[-2] * seen.shape[-1], getattr(part, "pool", 1)
    keys = pixels / pool**2
    return Operation(
        kind="attention",
        flops=4 * frames * pixels * keys * channels,
        bytes=element * frames * channels * 2 * (pixels + keys),
    )
