"""The parts of ``digits-wan``: a small `WanTransformer3DModel` and what a stock `WanPipeline` needs around it."""

from __future__ import annotations

from typing import Any

import torch
from fewstep.flow import Latent

from .words import DIGITS, DIRECTIONS, SPEEDS

TOKENS = 8
"""Length to which prompts are padded: ``max_sequence_length`` of the pipeline's call."""
TEXT_WIDTH = 32
SHIFT = 3.0
"""Time shift of training and of the teacher's scheduler."""
STEPS, GUIDANCE = 30, 2.0
"""Steps and guidance scale with which the teacher is sampled."""
SPECIAL = ("<pad>", "</s>", "<unk>")
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


def tokenizer() -> Any:
    """A word-level tokenizer of the closed vocabulary: lower case, ended by ``</s>``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *DIGITS, "moving", *DIRECTIONS, *SPEEDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TOKENS
    )


def text_encoder(seed: int = 0) -> Any:
    """A one-layer `UMT5EncoderModel`, random and never trained: it only has to tell two dozen words apart."""
    from transformers import UMT5Config, UMT5EncoderModel

    words = len(SPECIAL) + len(DIGITS) + 1 + len(DIRECTIONS) + len(SPEEDS)
    config = UMT5Config(
        vocab_size=words, d_model=TEXT_WIDTH, d_kv=8, d_ff=64, num_layers=1, num_heads=4, dropout_rate=0.0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UMT5EncoderModel(config).eval().requires_grad_(False)


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
        tokenizer=tokenizer(),
        text_encoder=text_encoder(),
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
