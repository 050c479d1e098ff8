"""The network of ``tiny-llada`` before training."""

from __future__ import annotations

from typing import Any

import torch
from fewstep.families import masked_lm

from . import text

POSITIONS = 512
TINY = {
    "model_type": "llada",
    "d_model": 128,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 4,
    "mlp_hidden_size": 384,
    "vocab_size": text.VOCABULARY,
    "max_sequence_length": POSITIONS,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "weight_tying": False,
    "mask_token_id": text.MASK,
    "eos_token_id": text.EOS,
    "pad_token_id": text.EOS,
}
"""``config.json`` of ``tiny-llada``."""
WIRED, FASTEST, SHARP, SAME = 2, 8, 6.0, 0.5
"""Layers that `_look_around` changes, rotary pairs, score of each pair, and share of the embedding that is constant."""


def network(seed: int, **overrides: Any) -> Any:
    """A ``LlamaForCausalLM`` of random weights that attends both ways; `overrides` are fields of `TINY`."""
    config = masked_lm.stock_config({**TINY, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = masked_lm.build(config)
    _look_around(model)
    return model


@torch.no_grad()
def _look_around(model: Any) -> None:
    """Let the heads of the first layers begin with their neighbours: -1, 1, -2, 2, and so on.

    From uniform attention a small model needs most of a short training to find them. One dimension of the embedding is
    the same for all tokens; queries and keys turn it so that their rotary phases agree at one distance.
    """
    config, embedding = model.config, model.model.embed_tokens.weight
    embedding[:, 0] = (SAME / (1 - SAME)) ** 0.5 * embedding[:, 1:].norm(dim=1)  # the same after the first norm
    frequency = model.model.rotary_emb.inv_freq[:FASTEST]
    size = (SHARP * config.head_dim**0.5 / (SAME * config.hidden_size)) ** 0.5
    half, fast, distance = config.head_dim // 2, len(frequency), 0
    for layer in model.model.layers[:WIRED]:
        for head in range(config.num_attention_heads):
            distance += head % 2 == 0
            turn = frequency * (distance if head % 2 else -distance)
            query, key = (layer.self_attn.get_submodule(f"{p}_proj").weight[head * config.head_dim :] for p in "qk")
            key[:fast, 0] = size
            query[:fast, 0], query[half : half + fast, 0] = size * turn.cos(), size * turn.sin()
