"""The trained model of questions about canvases, which comes with this package."""

from __future__ import annotations

from pathlib import Path

from fewstep.contract import Loaded
from fewstep.loaders import from_folder

NAME = "digits-qwen3-vl-moe"
WEIGHTS = Path(__file__).parents[1] / "weights" / NAME


def answerer(*, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """Load ``digits-qwen3-vl-moe``: a stock `Qwen3VLMoeForConditionalGeneration` with its processor."""
    return from_folder(WEIGHTS, name=NAME, dtype=dtype, device=device, weights="trained")
