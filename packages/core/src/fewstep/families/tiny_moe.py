"""Tiny random mixtures of experts of the real classes, with and without pictures, and inputs for them."""

from __future__ import annotations

from typing import Any

WIDTH, LAYERS, EXPERTS, TOP_K, VOCABULARY = 64, 3, 8, 4, 97
IMAGE, START, END, PAD, EOS = 90, 91, 92, 0, 2
"""Ids of the picture token, of the tokens around a picture, and of padding and end."""
SIDE, PATCH = 32, 4
TEXT_ONLY = ("qwen3_moe", "olmoe", "mixtral", "deepseek_v3", "gpt_oss")
FAMILIES = ("qwen3_vl_moe", "internvl-qwen3_moe", "internvl-gpt_oss", *TEXT_ONLY)
_COMMON = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 32,
    "num_experts_per_tok": TOP_K,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "initializer_range": 0.2,
    "sliding_window": None,
    "layer_types": ["full_attention"] * LAYERS,
}
_OWN: dict[str, dict[str, Any]] = {
    "qwen3_vl_moe_text": {
        "num_experts": EXPERTS,
        "moe_intermediate_size": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    },
    "qwen3_moe": {"num_experts": EXPERTS, "moe_intermediate_size": 32, "norm_topk_prob": True},
    "olmoe": {"num_experts": EXPERTS},
    "mixtral": {"num_local_experts": EXPERTS},
    "gpt_oss": {"num_local_experts": EXPERTS, "sliding_window": 128},
    "deepseek_v3": {
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "n_group": 2,
        "topk_group": 2,
        "norm_topk_prob": True,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "qk_head_dim": 16,
        "v_head_dim": 16,
        "head_dim": 8,
        "routed_scaling_factor": 2.5,
    },
}


def tiny(family: str = "qwen3_vl_moe", *, seed: int = 0, **overrides: Any) -> Any:
    """Build a random model in eval mode: 3 layers, width 64, 8 experts of which 4 are used, vocabulary 97.

    Args:
        family: one of `FAMILIES`. Those with pictures read 32x32 pixels as 16 tokens.
        seed: of the weights; the global generator is left as it was.
        overrides: fields of the text configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family in TEXT_ONLY:
            config = AutoConfig.for_model(family, **{**_COMMON, **_OWN[family], **overrides})
            made = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        else:
            made = AutoModelForImageTextToText.from_config(_with_pictures(family, overrides), trust_remote_code=False)
        for name, weight in made.named_parameters():  # a router of zeros would make every token alike
            if name.endswith(("gate.weight", "router.weight")):
                torch.nn.init.normal_(weight, std=0.3)
    return made.eval()


def _with_pictures(family: str, overrides: dict[str, Any]) -> Any:
    from transformers import InternVLConfig, Qwen3VLMoeConfig

    ids = {"image_token_id": IMAGE, "tie_word_embeddings": False}
    if family == "qwen3_vl_moe":
        vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": PATCH}
        vision |= {"temporal_patch_size": 1, "out_hidden_size": WIDTH, "num_position_embeddings": 64}
        vision |= {"deepstack_visual_indexes": []}
        text = {**_COMMON, **_OWN["qwen3_vl_moe_text"], **overrides}
        more = {"vision_start_token_id": START, "vision_end_token_id": END, "video_token_id": 93}
        return Qwen3VLMoeConfig(text_config=text, vision_config=vision, **ids, **more)
    inside = family.removeprefix("internvl-")
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision |= {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}
    text = {"model_type": inside, **_COMMON, **_OWN[inside], **overrides}
    return InternVLConfig(text_config=text, vision_config=vision, downsample_ratio=0.5, **ids)


def tiny_inputs(family: str = "qwen3_vl_moe", *, batch: int = 2, text: int = 9, seed: int = 0) -> dict[str, Any]:
    """Make keyword arguments of a model of `family`: a picture between two tokens where it reads them, then `text` ids.

    Args:
        family: one of `FAMILIES`.
        batch: number of prompts.
        text: tokens after the picture; ids in 3..79, none special.
        seed: of ids and pixels.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(3, 80, (batch, text), generator=generator)
    if family in TEXT_ONLY:
        return {"input_ids": words, "attention_mask": torch.ones_like(words)}
    cells = (SIDE // PATCH // 2) ** 2
    picture = torch.tensor([START, *[IMAGE] * cells, END]).expand(batch, -1)
    ids = torch.cat([picture, words], 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family != "qwen3_vl_moe":
        return inputs | {"pixel_values": torch.randn(batch, 3, SIDE, SIDE, generator=generator)}
    grid = SIDE // PATCH
    return inputs | {
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.randn(batch * grid**2, 3 * PATCH**2, generator=generator),
        "image_grid_thw": torch.tensor([[1, grid, grid]]).expand(batch, -1),
    }
