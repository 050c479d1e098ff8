"""Entry layers and budgets that were measured for a model, and the scaled guess for all others."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from .options import Keep, Score


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is filled in for fields of `SlimInfer` that are None."""

    entry: tuple[int, ...]
    keep: tuple[Keep, ...]
    block: int = 64
    score: Score = "dot"
    window: int = 4
    carry: int = 0


PRESETS: dict[tuple[str, int, int], Preset] = {
    # (model_type, layers, width): Llama-3.1-8B-Instruct and Qwen2.5-7B-Instruct are the paper's, arXiv:2508.06447
    ("llama", 32, 4096): Preset(entry=(10, 20, 30), keep=(8192, 4096, 2048)),
    ("qwen2", 28, 3584): Preset(entry=(9, 18, 26), keep=(12288, 6144, 4096)),
    # SmolLM2-135M-Instruct is ours: its retrieval starts at layer 14
    ("llama", 30, 576): Preset(
        entry=(15, 21, 28), keep=(1 / 4, 1 / 8, 1 / 16), block=16, score="unit_softmax", window=1, carry=1
    ),
}


def preset_for(config: Any, *, warn: bool = True) -> Preset:
    """The preset of a model by its transformers configuration; warns when it is only a scaled guess."""
    layers = config.num_hidden_layers
    if known := PRESETS.get((config.model_type, layers, config.hidden_size)):
        return known
    entry = tuple(sorted({min(max(round(share * layers / 32), 1), layers - 1) for share in (10, 20, 30)}))
    if warn:
        warnings.warn(
            f"no SlimInfer preset for {config.model_type} with {layers} layers: entry layers {entry} are scaled from "
            "Llama-3.1-8B, and retrieval layers differ between models; find them with `fewstep fit slim-infer`, or "
            "pass entry= and keep=",
            stacklevel=4,
        )
    return Preset(entry=entry, keep=tuple(8192 >> i for i in range(len(entry))))
