"""Where the time of a VAE's decoder goes, stage by stage, and what its student would have left."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from fewstep.errors import UnsupportedModelError
from torch import nn

from .count import by_stage
from .decoder import WanDecoder, spec_of
from .fit import preset
from .layers import Causal

SIZE = (81, 480, 832)
"""Frames, rows and columns for which multiplications are counted."""
TIMED = (5, 64, 64)
"""The same of the clip that is decoded for the times."""


def describe(config: Any, folder: Path) -> list[tuple[str, str]]:
    """Parameters, multiplications and times of teacher and student, by stage (the table of arXiv:2602.19161, fig. 2).

    Times are of random weights in the fastest exact formulation on this machine: for shares, not for whole videos.

    Raises:
        UnsupportedModelError: no ``AutoencoderKLWan``, or one like Wan 2.2's.
    """
    fields = config if isinstance(config, dict) else config.to_dict()
    if (found := fields.get("_class_name")) != "AutoencoderKLWan":
        raise UnsupportedModelError(f"this folder holds {found or 'another model'}; an AutoencoderKLWan is needed")
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        known = AutoencoderKLWan.from_config(fields).config
    operators, widths = preset(known)
    teacher, student = (WanDecoder(spec).eval() for spec in (spec_of(known), spec_of(known, operators, widths)))
    counts, fewer = by_stage(teacher, *SIZE), by_stage(student, *SIZE)
    spent, less = stage_times(teacher), stage_times(student)
    rows = [("operators of the student", ", ".join(operators)), ("widths (0: all)", ", ".join(map(str, widths)))]
    for stage in [*(stage for stage in counts if stage != "total"), "total"]:
        weights, products = counts[stage]
        said = (
            f"{weights:,} -> {fewer[stage][0]:,} parameters, {products / 1e9:,.1f} -> {fewer[stage][1] / 1e9:,.1f} GMAC"
        )
        if stage in spent:
            (before, dense), (after, _) = spent[stage], less[stage]
            said += f", {1e3 * before:.1f} -> {1e3 * after:.1f} ms"
            said += f" ({min(1.0, dense / before):.0%} of it causal convolutions)" if dense else ""
        rows.append((stage, said))
    clip = "{} frames of {}x{}".format
    return [*rows, ("counted for", clip(*SIZE)), ("timed on", f"{clip(*TIMED)}, random weights, this machine")]


@torch.inference_mode()
def stage_times(decoder: WanDecoder) -> dict[str, tuple[float, float]]:
    """Seconds of each stage in one decoding, and those of its causal convolutions."""
    spec, (frames, height, width) = decoder.spec, TIMED
    latents = torch.randn(1, spec.latent, 1 + (frames - 1) // spec.time, height // spec.space, width // spec.space)
    decoder(latents)
    whole: Counter[str] = Counter()
    dense: Counter[str] = Counter()
    handles: list[Any] = []
    for name, parts in _stages(decoder.decoder).items():
        for part in parts:
            handles += _watch(part, whole, (name, "total"))
            causal = [module for module in part.modules() if isinstance(module, Causal)]
            handles += [handle for module in causal for handle in _watch(module, dense, (name, "total"))]
    try:
        decoder(latents)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (seconds, dense[name]) for name, seconds in whole.items()}


def _stages(inner: Any) -> dict[str, list[nn.Module]]:
    """Modules by the names that `by_stage` gives."""
    found: dict[str, list[nn.Module]] = {"conv_in": [inner.conv_in], "mid": [inner.mid_block]}
    for number, block in enumerate(inner.up_blocks):
        found[f"up{number}"] = list(block.resnets)
        if block.upsamplers is not None:
            found[f"up{number} resample"] = list(block.upsamplers)
    return {**found, "head": [inner.norm_out, inner.conv_out]}


def _watch(module: nn.Module, seconds: Counter[str], names: tuple[str, ...]) -> list[Any]:
    """Add the seconds of each call under these names."""
    began: list[float] = []

    def add(*_: Any) -> None:
        spent = time.perf_counter() - began.pop()
        for name in names:
            seconds[name] += spent  # type: ignore[assignment]

    return [
        module.register_forward_pre_hook(lambda *_: began.append(time.perf_counter())),
        module.register_forward_hook(add),
    ]
