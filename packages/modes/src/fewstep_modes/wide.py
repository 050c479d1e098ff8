"""``moe-wide``: random weights in the proportions of Qwen3-VL-30B-A3B's text model, wide enough to time."""

from __future__ import annotations

from typing import Any

from fewstep.contract import Loaded

TEXT = {
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "num_experts": 32,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 384,
    "intermediate_size": 3072,
    "vocab_size": 1024,
    "max_position_embeddings": 8192,
    "norm_topk_prob": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""Half the width, half of everything in proportion: routed experts do two thirds of the products, as there."""


def load(*, dtype: str = "float32", device: str = "cpu", seed: int = 0, **overrides: Any) -> Loaded:
    """The model; `overrides` are fields of its configuration."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**TEXT, **overrides})).eval().requires_grad_(False)
        for name, weight in model.named_parameters():  # without this all experts of a token would weigh the same
            if name.endswith("gate.weight"):
                torch.nn.init.normal_(weight, std=0.05)
    return Loaded(model=model.to(device, getattr(torch, dtype)), name="moe-wide", weights="random")
