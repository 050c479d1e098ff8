"""The cost of `FlashVAED` and `ExactDecode` for ``fewstep plan``: decoders counted layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fewstep.errors import UnsupportedModelError
from fewstep.families import wan_cost, wan_vae, wan_vae_phases
from fewstep.roofline import Cost, Plan, Workload

from .decoder import DecoderShape, WanDecoder, decoder_shape, preset
from .method import ExactDecode, FlashVAED

PASSES = {"NormSilu": 2, "Residual": 3}
"""Passes over its output that a layer makes besides its convolutions."""


def plan(method: FlashVAED | ExactDecode, parts: Mapping[str, Any], work: Workload) -> Plan:
    """Decode one clip with diffusers (or the exact formulation), and with what takes its place; a whole pipeline too.

    A student without a shape of its own is taken to have the preset's, see `fewstep_flash_vaed.decoder.preset`.

    Raises:
        UnsupportedModelError: no VAE like Wan 2.1's.
        ValueError: operators or widths do not fit this VAE.
    """
    vae = parts.get("vae")
    if vae is None:
        raise UnsupportedModelError("Wan video VAEs and pipelines with one are supported, and this model has none")
    teacher, student = decoder_shape(vae), _student(method, vae)
    if "transformer" in parts:
        around = wan_cost.cost(parts, work, work.steps or wan_cost.STEPS, guided=work.guidance > 1)
    else:
        around = wan_vae_phases.stock(vae, work)
    before = _with(around, decoding(vae, teacher, work)) if work.vae == "exact" else around
    return Plan(before=before, after=_with(around, decoding(vae, student, work)))


def _student(method: FlashVAED | ExactDecode, config: Any) -> DecoderShape:
    if isinstance(method, ExactDecode):
        return decoder_shape(config)
    if method.operators or method.widths:
        return decoder_shape(config, method.operators, method.widths, method.pool)
    return decoder_shape(config, *preset(config), method.pool)


def decoding(config: Any, shape: DecoderShape, work: Workload) -> Cost:
    """Phase and memory of decoding with a decoder of this shape."""
    with torch.device("meta"):
        decoder = WanDecoder(shape)
    latents = wan_vae.latent_shape(config, work.frames, work.height, work.width)
    return wan_vae_phases.decoding(decoder, decoder, latents, work, kind="conv2d", passes=PASSES)


def _with(around: Cost, decoded: Cost) -> Cost:
    phases = tuple(decoded.phases[0] if phase.name == wan_vae_phases.NAME else phase for phase in around.phases)
    return Cost(phases=phases, memory={**around.memory, **decoded.memory})
