"""Tiny random models of the real classes, built from code: for mechanics only, no claim about quality."""

from __future__ import annotations

from typing import Any

LAYERS, WIDTH, HEADS, KV_HEADS, FFN, VOCABULARY = 6, 64, 4, 2, 128, 97


def causal_lm(family: str = "llama", *, seed: int = 0, **overrides: Any) -> Any:
    """A random ``<Family>ForCausalLM`` of 6 layers, width 64, 4 heads and 2 KV heads, vocabulary 97, in eval mode.

    Args:
        family: ``llama``, ``mistral``, ``qwen2``, ``qwen3``, ``smollm3``: a model type of transformers.
        seed: of the weights; the global generator is left as it was.
        overrides: fields of the configuration class.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": WIDTH // HEADS,
        "intermediate_size": FFN,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.2,  # wide enough that logits differ clearly between positions
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **{**fields, **overrides})
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def prompt(length: int, *, batch: int = 1, seed: int = 0) -> Any:
    """Random token ids ``[batch, length]`` in 3..96, never a special token."""
    import torch

    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
