"""The parts of ``digits-qwen3-vl-moe``: the stock Qwen3-VL-MoE classes, small, with a processor of their own."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, repeat
from fewstep.loaders import without_video
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from .canvas import GRID, SIDE
from .words import SPECIAL, UNKNOWN, vocabulary

PATCH, MERGE = 4, 2
MEAN, STD = 0.5, 0.5
LENGTH = 48
"""Longest prompt with its answer, in tokens."""
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|> "
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% else %} {{ message['content'] }} <|im_end|>{% endif %}{% endfor %}"
)
"""One picture, the question, the answer: no role words."""
TEXT = {
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [4, 2, 2]},
    "tie_word_embeddings": False,
    "router_aux_loss_coef": 0.01,
}
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 1,
    "out_hidden_size": 64,
    "num_position_embeddings": (GRID * SIDE // PATCH) ** 2,
    "deepstack_visual_indexes": [],
    "initializer_range": 0.05,
}
"""A weak tower without deepstack: what a digit is has to be worked out by the experts."""


def network(seed: int = 0, **text: Any) -> Any:
    """Build the `Qwen3VLMoeForConditionalGeneration` before training; `text` are fields of its text configuration."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    ids = vocabulary()
    config = Qwen3VLMoeConfig(
        text_config={**TEXT, "vocab_size": len(ids), "pad_token_id": 0, "eos_token_id": ids["<|im_end|>"], **text},
        vision_config=VISION,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    config.architectures = ["Qwen3VLMoeForConditionalGeneration"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3VLMoeForConditionalGeneration(config)


def processor() -> Any:
    """Build a `Qwen3VLProcessor`: word-level tokenizer of the closed vocabulary, pictures shrunk to 32x32 pixels."""
    from transformers import Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    area = (GRID * SIDE) ** 2
    pictures = Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        temporal_patch_size=1,
        merge_size=MERGE,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
        size={"shortest_edge": area, "longest_edge": area},
    )
    return without_video(Qwen3VLProcessor)(image_processor=pictures, tokenizer=tokenizer(), chat_template=TEMPLATE)


def tokenizer() -> Any:
    """Build the tokenizer: lower case, words between spaces."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNKNOWN))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        unk_token=UNKNOWN,
        additional_special_tokens=list(SPECIAL[2:]),
        model_max_length=512,
    )


def patches(pixels: UInt8[Tensor, "b h w"]) -> Float[Tensor, "patches features"]:
    """Cut grey canvases of the size of those of training into patches, as the image processor does, a batch at once."""
    grey = (pixels.float() / 255 - MEAN) / STD
    shape = "b (row my h) (column mx w) -> (b row column my mx) (h w)"
    flat = rearrange(grey, shape, my=MERGE, mx=MERGE, h=PATCH, w=PATCH)
    return repeat(flat, "n features -> n (colour features)", colour=3)


def positions(types: Int[Tensor, "b s"]) -> Int[Tensor, "3 b s"]:
    """Compute multimodal rotary positions of rows that begin with the picture, as the model itself would."""
    image, side = types[0].bool(), GRID
    start = int(image.nonzero()[0])
    cell = torch.arange(side * side)
    where = torch.arange(len(image)).expand(3, -1).clone()
    where[:, start : start + side * side] = start + torch.stack([torch.zeros_like(cell), cell // side, cell % side])
    after = len(image) - start - side * side
    where[:, start + side * side :] = start + side + torch.arange(after)
    return where[:, None].expand(3, len(types), -1)
