"""Cost of decoding with a Wan VAE, stage by stage: parameters, multiplications, seconds.

Stages are named ``conv_in``, ``mid``, ``up0``, ``up0 resample``, ``up1``, ..., ``head`` and ``total``. Everything here
works on any decoder that names its weights as diffusers does: ``post_quant_conv.*`` and ``decoder.*``.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from . import wan_vae

SIZE = (81, 480, 832)
"""Frames, rows and columns of the clip for which `describe` counts."""
_PARTS = re.compile(r"(decoder\.)?(post_quant_conv|conv_in|mid_block|up_blocks\.\d+\.\w+\.\d+|norm_out|conv_out)")


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Cost of one stage, from shapes alone."""

    parameters: int
    macs: int
    """Multiply-accumulates of its convolutions, as a direct computation needs them."""


def config_of(fields: Any) -> Any:
    """Complete the fields of a ``config.json`` with the defaults of ``AutoencoderKLWan``.

    Raises:
        UnsupportedModelError: they belong to a model of another class.
    """
    plain = fields if isinstance(fields, dict) else fields.to_dict()
    if (kind := plain.get("_class_name")) != "AutoencoderKLWan":
        raise UnsupportedModelError(f"this folder holds {kind or 'another model'}; an AutoencoderKLWan is needed")
    return on_meta(plain).config


def on_meta(config: Any) -> Any:
    """An ``AutoencoderKLWan`` on the meta device: shapes without numbers."""
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        return AutoencoderKLWan.from_config(config)


def decoder_costs(config: Any, frames: int, height: int, width: int) -> dict[str, StageCost]:
    """Costs by stage of decoding one clip, from the configuration of an ``AutoencoderKLWan`` alone.

    Args:
        config: its configuration.
        frames: of the clip, 1 more than a multiple of the temporal factor.
        height: of the clip in pixels.
        width: of the clip in pixels.
    """
    vae = on_meta(config)
    return stage_costs(vae, partial(wan_vae.decode, vae), wan_vae.latent_shape(vae.config, frames, height, width))


@torch.no_grad()
def stage_costs(module: nn.Module, decode: Callable[[Tensor], Any], latents: Iterable[int]) -> dict[str, StageCost]:
    """Costs by stage of decoding with any decoder; the last one is ``total``.

    Args:
        module: on the meta device: the decoder with its ``post_quant_conv``, or a VAE, whose encoder is left out.
        decode: decodes latents with `module`.
        latents: their shape ``[b, z, t, h, w]``.
    """
    parameters: Counter[str] = Counter()
    macs: Counter[str] = Counter()

    def count(stage: str, part: Any, _args: Any, out: Tensor) -> None:
        macs[stage] += out.numel() * part.weight[0].numel()

    for name, weight in module.named_parameters():
        parameters[_stage(name)] += weight.numel()
    handles = [
        part.register_forward_hook(partial(count, _stage(name)))
        for name, part in module.named_modules()
        if isinstance(weight := getattr(part, "weight", None), Tensor) and weight.ndim >= 4
    ]
    try:
        decode(torch.empty(tuple(latents), device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    costs = {name: StageCost(parameters=number, macs=macs[name]) for name, number in parameters.items() if name}
    total = StageCost(parameters=sum(c.parameters for c in costs.values()), macs=sum(c.macs for c in costs.values()))
    return costs | {"total": total}


def _stage(name: str) -> str:
    """Stage of a weight or layer by its name; empty for the encoder's."""
    parts = name.removeprefix("decoder.").split(".")
    if parts[0] == "up_blocks":
        return f"up{parts[1]}" + (" resample" if parts[2] == "upsamplers" else "")
    stages = {"post_quant_conv": "conv_in", "conv_in": "conv_in", "mid_block": "mid"}
    return stages.get(parts[0], "head" if name.startswith("decoder.") else "")


@torch.inference_mode()
def stage_seconds(decoder: nn.Module, latents: Tensor) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Seconds by stage of one decoding after a warm-up, and those that its dense causal convolutions take."""
    decoder(latents)
    layers = dict(decoder.named_modules())
    stages = {part: _stage(name) for name, part in layers.items() if _PARTS.fullmatch(name)}
    causal = {part: _stage(name) for name, part in layers.items() if _is_causal(part)}
    return _timed(decoder, latents, stages), _timed(decoder, latents, causal)


def _is_causal(part: Any) -> bool:
    weight = getattr(part, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 5 and weight.shape[1] > 1 and weight.shape[2] > 1


def _timed(decoder: nn.Module, latents: Tensor, stages: Mapping[nn.Module, str]) -> Mapping[str, float]:
    """Seconds that the calls of these modules take in one decoding, by stage and in ``total``."""
    seconds: dict[str, float] = {}
    starts: list[float] = []

    def stop(part: nn.Module, *_: Any) -> None:
        passed = time.perf_counter() - starts.pop()
        for name in (stages[part], "total"):
            seconds[name] = seconds.get(name, 0.0) + passed

    handles: list[Any] = [part.register_forward_hook(stop) for part in stages]
    handles += [part.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter())) for part in stages]
    try:
        decoder(latents)
    finally:
        for handle in handles:
            handle.remove()
    return seconds


def compared(before: Mapping[str, StageCost], after: Mapping[str, StageCost]) -> dict[str, str]:
    """Costs of a decoder and of what takes its place, in words, by stage."""
    return {
        stage: f"{cost.parameters:,} -> {after[stage].parameters:,} parameters, "
        f"{cost.macs / 1e9:,.1f} -> {after[stage].macs / 1e9:,.1f} GMAC"
        for stage, cost in before.items()
    }


def timed(before: nn.Module, after: nn.Module, latents: Tensor) -> dict[str, str]:
    """Milliseconds of a decoder and of what takes its place, in words, by stage."""
    (spent, causal), (less, _) = (stage_seconds(decoder, latents) for decoder in (before, after))
    shares = {stage: min(1.0, causal.get(stage, 0.0) / seconds) for stage, seconds in spent.items()}
    return {
        stage: f"{1e3 * seconds:.1f} -> {1e3 * less[stage]:.1f} ms"
        + (f" ({shares[stage]:.0%} of it causal convolutions)" if shares[stage] else "")
        for stage, seconds in spent.items()
    }


def describe(config: Any, folder: Path) -> list[tuple[str, str]]:
    """Lines for ``fewstep show``: factors, and parameters and multiplications of the decoder by stage.

    Raises:
        UnsupportedModelError: no ``AutoencoderKLWan``, or one like Wan 2.2's.
    """
    known = config_of(config)
    frames, pixels = wan_vae.factors(known)
    stages = wan_vae.decoder_stages(known)
    rows = [
        ("latents", f"{known.z_dim} channels for {pixels}x{pixels} pixels and {frames} frames"),
        ("channels", ", ".join(f"{stage.inside} -> {stage.width}" for stage in stages)),
    ]
    costs = decoder_costs(known, *SIZE).items()
    rows += [(name, f"{cost.parameters:,} parameters, {cost.macs / 1e9:,.1f} GMAC") for name, cost in costs]
    return [*rows, ("counted for", "{} frames of {}x{}".format(*SIZE))]
