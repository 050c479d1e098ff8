"""How diffusion language models are measured here: latency at a length, exact retrieval, agreement on a real text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from fewstep.bench import Outcome, Sample
from fewstep.contract import Loaded
from fewstep.data import texts
from fewstep.errors import UnsupportedModelError
from fewstep.families import masked_lm
from fewstep.families.sizes import TransformerSizes
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from .confidence import correlation, coverage
from .decoding import Decoding
from .generation import Output
from .method import generation, keeps_cache
from .state import Stats

EXTRA_BASELINES = {"generate": ("fast-dllm", "fast-dllm-published"), "cached_step": ("fast-dllm",)}
"""Arms that times are compared with besides vanilla decoding, by time."""


def seconds(stats: Stats) -> dict[str, float]:
    """Median times of a refresh (each step of vanilla decoding is one) and of a cached step, and their sum."""
    found = {"refresh": statistics.median(stats.refresh_seconds)}
    if stats.step_seconds:
        found["cached_step"] = statistics.median(stats.step_seconds)
    return {"generate": sum(stats.refresh_seconds) + sum(stats.step_seconds), **found}


def counts(stats: Stats, config: Any, tokens: int, full_steps: int) -> dict[str, float]:
    """Operations (10^12) by the FLOP model, and what cached steps computed and read on average."""
    sizes = TransformerSizes.of(config)
    operations = full_steps * masked_lm.full_pass_flops(sizes, tokens, 1)
    partial = [(rows, tokens) for rows in stats.partial_rows]
    for rows, read in [*zip(stats.rows, stats.read, strict=True), *partial]:
        operations += masked_lm.cached_pass_flops(sizes, rows, read)
    found = {"tflop": operations / 1e12}
    if stats.rows:
        found |= {"rows_per_step": statistics.mean(stats.rows), "keys_read": statistics.mean(stats.read)}
    if stats.kept:
        found["prompt_tokens_kept"] = statistics.mean(stats.kept)
    return found


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds of a response behind a prompt of random tokens; vanilla decoding is extrapolated from a few steps."""

    extra_baselines: ClassVar[Mapping[str, tuple[str, ...]]] = EXTRA_BASELINES

    length: int = 8192
    """Tokens of the prompt."""
    gen_length: int = 64
    """Tokens of the response, one a step."""
    block_length: int = 32
    """Tokens of a decoding block."""
    timed_steps: int = 2
    """Steps of vanilla decoding that are run: all of them take the same, so the whole is steps times their median."""

    def small(self) -> Self:
        """A prompt of at most 1024 tokens and two blocks of 8."""
        return replace(self, length=min(self.length, 1024), gen_length=16, block_length=8, timed_steps=16)

    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Time one call of generate."""
        model = loaded.model
        masked_lm.check(model)
        ids = torch.randint(0, model.config.mask_token_id, (1, self.length), generator=generator).to(model.device)
        decoding = Decoding(gen_length=self.gen_length, block_length=self.block_length, stop_at_eos=False)
        cached = keeps_cache(model)
        output = generation(model)(ids, decoding=decoding, max_steps=None if cached else self.timed_steps)
        stats, tokens = output.stats, self.length + self.gen_length
        steps = stats.refreshes if cached else self.gen_length
        times = seconds(stats)
        if not cached:
            times["generate"] = self.gen_length * times["refresh"]
        return Outcome(
            seconds=times,
            counts=counts(stats, model.config, tokens, steps) | ({} if cached else {"steps_timed": stats.refreshes}),
            evidence=output.response.float().cpu(),
        )

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Random tokens behind random tokens: nothing to compare."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Look up the values of keys in a prompt of records (a model such as ``wired-recall``): the truth is known."""

    extra_baselines: ClassVar[Mapping[str, tuple[str, ...]]] = EXTRA_BASELINES

    length: int = 1024
    """Tokens of the prompt."""
    records: int = 32
    """Records in it."""
    gen_length: int = 64
    """Tokens of the response, half of them keys that are given."""
    block_length: int = 32
    """Tokens of a decoding block."""
    prompts: int = 2
    """Prompts, one after the other."""

    def small(self) -> Self:
        """One prompt of at most 512 tokens."""
        return replace(self, length=min(self.length, 512), records=8, gen_length=16, block_length=8, prompts=1)

    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Right values, over all masks of the responses."""
        make = getattr(loaded.processor, "recall_prompt", None)
        if make is None:
            raise UnsupportedModelError(
                f"{loaded.name} makes no recall prompts; take wired-recall, or the task agreement"
            )
        decoding = Decoding(gen_length=self.gen_length, block_length=self.block_length, stop_at_eos=False)
        outputs, right = [], []
        for _ in range(self.prompts):
            asked = make(self.length, self.records, self.gen_length, generator)
            ids, response = (t[None].to(loaded.model.device) for t in (asked.prompt, asked.response))
            outputs.append(generation(loaded.model)(ids, response=response, decoding=decoding))
            right.append((outputs[-1].response[0].cpu() == asked.answer)[asked.response != asked.answer])
        times = [seconds(output.stats) for output in outputs]
        return Outcome(
            seconds={name: statistics.mean(t[name] for t in times) for name in times[0]},
            quality={"accuracy": torch.cat(right).float().mean().item()},
            counts=_mean_counts(outputs, loaded.model.config),
            evidence=torch.cat([output.response for output in outputs]).float().cpu(),
        )

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Share of tokens that vanilla decoding has too."""
        return agreement(outcome, baseline)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Continue a real text and compare with vanilla decoding, token by token and by vanilla's own judgement."""

    extra_baselines: ClassVar[Mapping[str, tuple[str, ...]]] = EXTRA_BASELINES

    length: int = 384
    """Tokens of the prompt."""
    gen_length: int = 64
    """Tokens of the response."""
    block_length: int = 32
    """Tokens of a decoding block."""
    prompts: int = 4
    """Places of the text that are continued, one after the other."""
    hidden: int = 4
    """Times that half of each response is hidden from the unchanged model, which then says how likely it is."""

    def small(self) -> Self:
        """One prompt of at most 128 tokens."""
        return replace(self, length=min(self.length, 128), gen_length=16, block_length=8, prompts=1, hidden=1)

    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Times, how well confidences predict what is unmasked, and the loss of the unchanged model on the result."""
        if loaded.processor is None or hasattr(loaded.processor, "recall_prompt"):
            raise UnsupportedModelError(f"{loaded.name} has no tokenizer, so it cannot continue a text")
        model = loaded.model
        decoding = Decoding(gen_length=self.gen_length, block_length=self.block_length, stop_at_eos=False)
        outputs, losses, samples = [], [], []
        for _ in range(self.prompts):
            ids = texts.window(loaded.processor, "python-docs", self.length, generator)[None].to(model.device)
            outputs.append(generation(model)(ids, decoding=decoding, trace=True))
            losses += [masked_loss(model, outputs[-1], self.gen_length, generator) for _ in range(self.hidden)]
            said = loaded.processor.decode(outputs[-1].response[0])
            samples.append(Sample(title=f"... {loaded.processor.decode(ids[0, -80:])}", text=said))
        trace = [step for output in outputs for step in output.stats.trace]
        times = [seconds(output.stats) for output in outputs]
        return Outcome(
            seconds={name: statistics.mean(t[name] for t in times) for name in times[0]},
            quality={
                "masked_nll": statistics.mean(losses),
                "confidence_correlation": correlation(trace),
                **{f"coverage_at_{k}": coverage(trace, k) for k in (1, 2, 4, 8)},
            },
            counts=_mean_counts(outputs, model.config),
            evidence=torch.cat([output.response for output in outputs]).float().cpu(),
            samples=tuple(samples[:3]),
        )

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Share of tokens that vanilla decoding has too; loss of the result above that of vanilla's."""
        gap = outcome.quality["masked_nll"] - baseline.quality["masked_nll"]
        return agreement(outcome, baseline) | {"nll_gap": gap}


def agreement(outcome: Outcome, baseline: Outcome) -> dict[str, float]:
    """Share of response tokens that two arms have in common."""
    both = outcome.evidence, baseline.evidence
    return {"top1_agreement": (both[0] == both[1]).float().mean().item()}  # type: ignore[union-attr]


@torch.no_grad()
def masked_loss(model: Any, output: Output, length: int, generator: torch.Generator) -> float:
    """Mean loss (nats a token) of the unchanged model on a random half of the response, seeing the other half."""
    tokens, start = output.sequences[:1].clone(), output.sequences.shape[1] - length
    hidden = torch.randperm(length, generator=generator)[: max(1, length // 2)].to(tokens.device) + start
    truth: Int[Tensor, " k"] = tokens[0, hidden]
    tokens[0, hidden] = model.config.mask_token_id
    states = model.model(input_ids=tokens, use_cache=False).last_hidden_state  # no plan: the model's own attention
    logits = model.lm_head(states[0, hidden - int(model.config.diffusion == "dream")]).float()
    return F.cross_entropy(logits, truth).item()


def _mean_counts(outputs: list[Output], config: Any) -> dict[str, float]:
    found = [counts(o.stats, config, o.sequences.shape[1], o.stats.refreshes) for o in outputs]
    return {name: statistics.mean(f[name] for f in found) for name in found[0]}
