"""The parts of ``worlds-wan`` and ``worlds-causal-wan``: a small `WanTransformer3DModel` in a stock `WanPipeline`."""

from __future__ import annotations

from typing import Any

import torch

from .. import closed_language
from .words import WORDS

TOKENS = 16
"""Length to which prompts are padded: ``max_sequence_length`` of the pipeline's call."""
TEXT_WIDTH = 32
SHIFT = 5.0
"""Time shift of training and of the scheduler, as of Wan."""
CHUNK = 3
"""Latent frames of a chunk of the causal model."""
STEPS, GUIDANCE = 30, 2.0
"""Steps and guidance scale with which the teacher is sampled."""
TRANSFORMER = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 64,
    "ffn_dim": 384,
    "num_layers": 6,
    "rope_max_seq_len": 1024,
}


def transformer(seed: int = 0) -> Any:
    """The `WanTransformer3DModel` before training."""
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel(**TRANSFORMER)


def pipeline(network: Any, vae: Any) -> Any:
    """A stock `WanPipeline` around `network` and `vae`."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    pipe = WanPipeline(
        tokenizer=closed_language.tokenizer(WORDS, TOKENS),
        text_encoder=closed_language.text_encoder(WORDS, TEXT_WIDTH),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer=network,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
