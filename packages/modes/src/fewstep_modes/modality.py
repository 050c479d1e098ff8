"""Which tokens of a forward pass are text, vision, special or padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int8
from torch import Tensor

PADDING, OTHER, TEXT, VISION = -1, 0, 1, 2
NAMES = {TEXT: "text", VISION: "vision"}
_VISION_IDS = ("image_token_id", "video_token_id", "image_token_index", "media_placeholder_token_id")
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "vision_start_token_id", "vision_end_token_id")


def _ids(model: Any, names: tuple[str, ...]) -> tuple[int, ...]:
    """Token ids that the configurations of `model` hold under these names."""
    text = getattr(model.config, "text_config", None)
    found: set[int] = set()
    for config in (model.config, text, getattr(model, "generation_config", None)):
        for name in names:
            value = getattr(config, name, None)
            found |= {value} if isinstance(value, int) else set(value or ())
    return tuple(sorted(found))


def special_ids(model: Any) -> tuple[int, ...]:
    """Begin, end, padding and the tokens around pictures, as far as the configurations name them."""
    return _ids(model, _SPECIAL_IDS)


def vision_ids(model: Any) -> tuple[int, ...]:
    """Placeholders of pictures and videos; empty for a model that reads text alone."""
    return _ids(model, _VISION_IDS)


def modality(kwargs: Mapping[str, Any], special: tuple[int, ...], vision: tuple[int, ...]) -> Int8[Tensor, "b s"]:
    """-1 padding, 0 other (special tokens), 1 text, 2 vision, for each token of a call of the model.

    Args:
        kwargs: what the model is called with: ``input_ids``, ``mm_token_type_ids``, ``attention_mask``, ...
        special: ids that are never skipped.
        vision: ids of placeholders.

    Raises:
        ValueError: there are embeddings instead of ids, and nothing that says which are vision.
    """
    ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
    types, tokens = kwargs.get("mm_token_type_ids"), ids if ids is not None else embeds
    if tokens is None:
        raise ValueError("the model was called without input_ids and inputs_embeds: modalities cannot be told")
    if ids is None and types is None and vision:
        raise ValueError(
            "with inputs_embeds and no input_ids pass mm_token_type_ids (0 text, 1 image, 2 video): expert skipping "
            "treats text and vision differently"
        )
    kind = torch.full(tokens.shape[:2], TEXT, dtype=torch.int8, device=tokens.device)
    if types is not None and types.shape == kind.shape:
        kind[types > 0] = VISION
    if ids is not None:
        kind[torch.isin(ids, torch.tensor(special, device=ids.device))] = OTHER
        kind[torch.isin(ids, torch.tensor(vision, device=ids.device))] = VISION
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        kind[mask[:, -kind.shape[1] :] == 0] = PADDING
    return kind
