"""``moe-latency``: what a prompt and each new token take, against the fastest experts that transformers has."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from fewstep.bench import Outcome
from fewstep.contract import Loaded
from fewstep.families import moe
from jaxtyping import Int
from torch import Tensor

PREFILL, DECODE = moe.MANY_TOKENS, (*moe.MANY_TOKENS, "batched_mm")
"""Implementations of transformers that the unchanged model is tried with; the fastest one counts."""


@dataclass(frozen=True, kw_only=True)
class MoeLatency:
    """Read random tokens, then decode; the unchanged model runs with the fastest of transformers' own experts."""

    length: int = 1024
    """Tokens of the prompt."""
    new_tokens: int = 16
    """Tokens that are decoded one by one after it; 0 for none."""

    def __post_init__(self) -> None:
        if self.length < 1 or self.new_tokens < 0:
            raise ValueError(f"length must be at least 1 and new_tokens not negative, found {self}")

    @torch.inference_mode()
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Time both; the evidence is the logits after the prompt."""
        model = loaded.model
        vocabulary = model.config.get_text_config().vocab_size
        ids = torch.randint(vocabulary, (1, self.length + self.new_tokens), generator=generator).to(model.device)
        with moe.counted(model) as pairs:
            logits, cache, prefill = moe.fastest(model, lambda: self._prefill(model, ids), PREFILL)
        seconds = {"prefill": prefill}
        if self.new_tokens:
            _, _, decode = moe.fastest(model, lambda: self._decode(model, ids, cache), DECODE)
            seconds["decode"] = decode
        return Outcome(seconds=seconds, counts={"skipped_share": pairs.skipped()}, evidence=logits.float().cpu())

    def _prefill(self, model: Any, ids: Int[Tensor, "1 n"]) -> tuple[Tensor, Any, float]:
        began = time.perf_counter()
        out = model(input_ids=ids[:, : self.length], use_cache=True, logits_to_keep=1)
        _wait(ids)
        return out.logits[:, -1], out.cache, time.perf_counter() - began

    def _decode(self, model: Any, ids: Int[Tensor, "1 n"], cache: Any) -> tuple[None, None, float]:
        if (excess := cache.get_seq_length() - self.length) > 0:
            cache.crop(-excess)
        began = time.perf_counter()
        for at in range(self.length, self.length + self.new_tokens):
            model(input_ids=ids[:, at : at + 1], cache=cache, use_cache=True, logits_to_keep=1)
        _wait(ids)
        return None, None, (time.perf_counter() - began) / self.new_tokens

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Nothing: random weights say nothing that could be worse."""
        return {}

    def small(self) -> Self:
        """A short prompt and two tokens."""
        return replace(self, length=min(self.length, 64), new_tokens=min(self.new_tokens, 2))

    def calibration(self, loaded: Loaded, samples: int, batch: int, seed: int) -> list[dict[str, Any]]:
        """Random tokens, to find the thresholds that give a ratio; `samples` tokens in one sequence."""
        vocabulary = loaded.model.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(1_000_000 + seed)
        ids = torch.randint(vocabulary, (1, samples), generator=generator)
        return [{"inputs": {"input_ids": ids}, "score_mask": torch.arange(samples)[None] >= samples // 2}]


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()
