"""Loaders of the masked diffusion models."""

from __future__ import annotations

from pathlib import Path

from fewstep.contract import Loaded
from fewstep.loaders import from_folder

TINY = Path(__file__).parents[1] / "weights" / "tiny-llada"
SMALL = {
    "model_type": "llada",
    "d_model": 256,
    "n_layers": 8,
    "n_heads": 4,
    "n_kv_heads": 2,
    "mlp_hidden_size": 768,
    "vocab_size": 4096,
    "max_sequence_length": 65536,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "mask_token_id": 4095,
    "eos_token_id": 4094,
    "pad_token_id": 4094,
}
"""``config.json`` of ``llada-small-random``."""


def tiny(*, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """Load ``tiny-llada``: a byte-level masked diffusion LM, trained by `fewstep_zoo.dllm.recipes`."""
    return from_folder(TINY, name="tiny-llada", dtype=dtype, device=device, weights="trained")


def small_random(*, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """Build ``llada-small-random``: the shape of a LLaDA with grouped queries, random weights; for timing alone."""
    import torch
    from fewstep.families import masked_lm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = masked_lm.build(masked_lm.stock_config(SMALL))
    with torch.device(device):
        rotary = type(model.model.rotary_emb)(model.config)
    model = model.to(device, getattr(torch, dtype))
    model.model.rotary_emb = rotary  # its angles stay in float32
    return Loaded(model=model, name="llada-small-random", weights="random")
