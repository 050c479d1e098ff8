"""The model of random weights has the shape that it says, and its weights are never taken for trained ones."""

from __future__ import annotations

import torch
from fewstep import load


def test_the_shape_is_that_of_the_latency_model():
    loaded = load("llada-small-random")
    config = loaded.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (8, 256, 4096)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 64)
    assert (config.intermediate_size, config.max_position_embeddings) == (768, 65536)
    assert (config.is_causal, config.mask_token_id, config.diffusion) == (False, 4095, "llada")
    assert loaded.weights == "random" and loaded.processor is None


def test_a_seed_gives_the_same_weights_in_every_dtype_with_angles_in_float32():
    one, half = load("llada-small-random").model, load("llada-small-random", dtype="bfloat16").model
    other = half.state_dict()
    assert all(torch.equal(value.bfloat16(), other[name]) for name, value in one.state_dict().items())
    assert torch.equal(one.model.rotary_emb.inv_freq, half.model.rotary_emb.inv_freq)
