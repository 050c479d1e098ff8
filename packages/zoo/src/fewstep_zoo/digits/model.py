"""The parts of ``digits-wan``: a small `WanTransformer3DModel` and what a stock `WanPipeline` needs around it."""

from __future__ import annotations

from typing import Any

import torch
from fewstep.flow import Latent

from .. import closed_language
from .words import DIGITS, DIRECTIONS, SPEEDS

TOKENS = 8
"""Length to which prompts are padded: ``max_sequence_length`` of the pipeline's call."""
TEXT_WIDTH = 32
SHIFT = 3.0
"""Time shift of training and of the teacher's scheduler."""
STEPS, GUIDANCE = 30, 2.0
"""Steps and guidance scale with which the teacher is sampled."""
WORDS = (*DIGITS, "moving", *DIRECTIONS, *SPEEDS)
"""Vocabulary of the prompts."""
TRANSFORMER = {
    "patch_size": (6, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "in_channels": 1,
    "out_channels": 1,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 64,
    "ffn_dim": 288,
    "num_layers": 4,
    "rope_max_seq_len": 64,
}


def transformer(seed: int = 0, **overrides: Any) -> Any:
    """The `WanTransformer3DModel` before training; `overrides` are fields of its configuration."""
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel(**{**TRANSFORMER, **overrides})


def pipeline(network: Any) -> Any:
    """A stock `WanPipeline` around `network`, without a VAE: its latents are the pixels, from -1 to 1."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    pipe = WanPipeline(
        tokenizer=closed_language.tokenizer(WORDS, TOKENS),
        text_encoder=closed_language.text_encoder(WORDS, TEXT_WIDTH),
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer=network,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make(pipe: Any, prompts: list[str], start: Latent, *, steps: int = STEPS, guidance: float = GUIDANCE) -> Latent:
    """Make clips from prompts and noise ``[B, 1, F, H, W]``, on the CPU in float32; values are about -1 to 1."""
    out = pipe(
        prompts,
        latents=start.to(pipe.device),
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=TOKENS,
        output_type="latent",
    )
    return out.frames.float().cpu()
