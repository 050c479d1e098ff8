"""Tiny mixtures of the real classes, and what the tests of every part need of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fewstep.families import tiny_moe


@pytest.fixture
def model():
    """A tiny Qwen3-VL-MoE: 3 layers, 8 experts, 4 of them for each token."""
    return tiny_moe.tiny()


@pytest.fixture
def inputs():
    """Two prompts with a picture of 16 tokens, two marks and nine words each."""
    return tiny_moe.tiny_inputs()


@pytest.fixture
def batches():
    """Calibration data: the last four positions of two batches are scored."""
    made = []
    for seed in range(2):
        given = tiny_moe.tiny_inputs(seed=seed)
        mask = torch.zeros(given["input_ids"].shape, dtype=torch.bool)
        mask[:, -4:] = True
        made.append({"inputs": given, "score_mask": mask})
    return made


@pytest.fixture
def logits():
    """Logits of a call, without gradients."""

    @torch.no_grad()
    def call(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        return model(**inputs, use_cache=False).logits

    return call
