"""Speed on wide experts: the random model ``moe-wide``, and the task ``moe-latency``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from fewstep.bench import Outcome
from fewstep.contract import CalibrationBatch, Loaded
from fewstep.families import causal_lm, moe
from fewstep.roofline import Measured, Workload
from jaxtyping import Int
from torch import Tensor

SIZES = {
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "num_experts": 32,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 384,
    "intermediate_size": 3072,
    "vocab_size": 1024,
    "max_position_embeddings": 8192,
    "norm_topk_prob": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""Proportions of Qwen3-VL-30B-A3B's text model at half the width: routed experts do two thirds of the products too."""
PREFILL, DECODE = moe.MANY_TOKENS, (*moe.MANY_TOKENS, "batched_mm")
"""Implementations of transformers that the unchanged model is tried with; the fastest one counts."""


def configuration(**overrides: Any) -> Any:
    """The configuration of ``moe-wide``; `overrides` are fields of it."""
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(architectures=["Qwen3MoeForCausalLM"], **{**SIZES, **overrides})


def load(*, dtype: str = "float32", device: str = "cpu", seed: int = 0, **overrides: Any) -> Loaded:
    """Build ``moe-wide``, a Qwen3-MoE with random weights; `overrides` are fields of its configuration."""
    from transformers import Qwen3MoeForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3MoeForCausalLM(configuration(**overrides)).eval().requires_grad_(False)
        for name, weight in model.named_parameters():  # without this all experts of a token would weigh the same
            if name.endswith("gate.weight"):
                torch.nn.init.normal_(weight, std=0.05)
    return Loaded(model=model.to(device, getattr(torch, dtype)), name="moe-wide", weights="random")


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
        ids = _random_ids(model, self.length + self.new_tokens, generator).to(model.device)
        prompt, known = ids[:, : self.length], torch.cat([ids[:, self.length :], ids[:, :1]], 1)  # the last is not fed
        with moe.counted(model) as pairs:
            logits, cache, prefill = moe.fastest(model, lambda: causal_lm.prefill(model, prompt), PREFILL)
        seconds = {"prefill": prefill}
        if self.new_tokens:

            def decode() -> tuple[Any, float]:
                if (excess := cache.get_seq_length() - self.length) > 0:
                    cache.crop(-excess)
                return causal_lm.decode_known(model, known, cache)

            seconds["decode"] = moe.fastest(model, decode, DECODE)[-1] / self.new_tokens
        return Outcome(seconds=seconds, counts={"skipped_share": pairs.skipped()}, evidence=logits.float().cpu())

    def measured(self) -> Measured:
        """One prompt, and new tokens one by one."""
        work = Workload(length=self.length, new_tokens=max(1, self.new_tokens))
        return Measured(work=work, phases={"prefill": "prefill", "decode": "decode"})

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Return nothing: outputs of random weights have no quality that could be lost."""
        return {}

    def small(self) -> MoeLatency:
        """Return the task with a short prompt and two tokens."""
        return replace(self, length=min(self.length, 64), new_tokens=min(self.new_tokens, 2))

    def calibration(self, loaded: Loaded, samples: int, batch: int, seed: int) -> list[CalibrationBatch]:
        """Draw `samples` random tokens in one sequence, to find the thresholds that give a ratio."""
        ids = _random_ids(loaded.model, samples, torch.Generator().manual_seed(1_000_000 + seed))
        return [{"inputs": {"input_ids": ids}, "score_mask": torch.arange(samples)[None] >= samples // 2}]


def _random_ids(model: Any, count: int, generator: torch.Generator) -> Int[Tensor, "1 n"]:
    return torch.randint(model.config.get_text_config().vocab_size, (1, count), generator=generator)
