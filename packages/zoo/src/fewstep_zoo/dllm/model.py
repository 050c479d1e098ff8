"""The networks of this folder, before training."""

from __future__ import annotations

from typing import Any

import torch
from fewstep import dllm

from . import text

POSITIONS = 1024
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


def network(seed: int, **overrides: Any) -> Any:
    """A ``LlamaForCausalLM`` that attends both ways, of random weights; `overrides` are fields of `TINY`."""
    config = dllm.stock_config({**TINY, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dllm.build(config)
