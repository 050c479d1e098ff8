"""Configurations of the published language models, and what makes the same classes tiny."""

from __future__ import annotations

from typing import Any

LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
"""Llama-3.1-8B."""
LLADA_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 126464,
    "max_position_embeddings": 65536,  # published with 4096; positions have no weights
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    "bos_token_id": None,
    "eos_token_id": 126081,
    "pad_token_id": 126081,
}
"""LLaDA-8B as a Llama that attends both ways."""
QWEN_TEXT: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "max_position_embeddings": 262144,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
}
QWEN_VISION: dict[str, Any] = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "deepstack_visual_indexes": [8, 16, 24],
}
"""With `QWEN_TEXT`, Qwen3-VL-30B-A3B."""

_NARROW = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
TINY_LLAMA: dict[str, Any] = {**_NARROW, "num_hidden_layers": 3, "vocab_size": 97}
TINY_LLADA: dict[str, Any] = {**_NARROW, "num_hidden_layers": 3, "vocab_size": 97, "eos_token_id": 2, "pad_token_id": 0}
TINY_TEXT: dict[str, Any] = {**_NARROW, "num_hidden_layers": 2, "vocab_size": 97, "head_dim": 16, "num_experts": 8}
TINY_TEXT |= {"moe_intermediate_size": 32, "num_experts_per_tok": 4}
TINY_TEXT |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}}
TINY_VISION: dict[str, Any] = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
TINY_VISION |= {"out_hidden_size": 64, "deepstack_visual_indexes": [], "num_position_embeddings": 64}


def llama(**sizes: Any) -> Any:
    """Llama-3.1-8B's configuration with other `sizes`."""
    from transformers import LlamaConfig

    return LlamaConfig(**{**LLAMA_8B, **sizes})


def llada(*, mask: int = 126336, **sizes: Any) -> Any:
    """LLaDA-8B's configuration, as `fewstep.families.masked_lm` makes it, with other `sizes`."""
    from transformers import LlamaConfig

    made = LlamaConfig(**{**LLADA_8B, **sizes})
    made.is_causal, made.mask_token_id, made.diffusion = False, mask, "llada"
    return made


def qwen(text: dict[str, Any], vision: dict[str, Any], **ids: int) -> Any:
    """Qwen3-VL-30B-A3B's configuration with other sizes of text and vision, and other ids of marks."""
    from transformers import Qwen3VLMoeConfig

    both = {"text_config": {**QWEN_TEXT, **text}, "vision_config": {**QWEN_VISION, **vision}}
    return Qwen3VLMoeConfig(**both, **ids, tie_word_embeddings=False)
