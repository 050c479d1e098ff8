"""Tasks of masked diffusion language models: latency at a length, exact retrieval, agreement on a real text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from fewstep.bench import Outcome, Sample
from fewstep.contract import Loaded
from fewstep.data import texts
from fewstep.errors import UnsupportedModelError, check_least
from fewstep.families import masked_lm
from fewstep.families.sizes import TransformerSizes
from fewstep.roofline import Measured, Workload
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from .decoding import DecodingOptions, Stats, correlation, coverage
from .generation import Output, current_generate, keeps_cache


def seconds(stats: Stats) -> dict[str, float]:
    """Sum of all steps, and medians of a refresh (each step of vanilla decoding is one) and of a cached step."""
    times = {"generate": sum(stats.refresh_seconds) + sum(stats.step_seconds)}
    times["refresh"] = statistics.median(stats.refresh_seconds)
    return times | ({"cached_step": statistics.median(stats.step_seconds)} if stats.step_seconds else {})


def counts(stats: Stats, config: Any, tokens: int, full_passes: int) -> dict[str, float]:
    """Operations (10^12) by the FLOP model, and means of the rows and keys of cached steps."""
    sizes = TransformerSizes.of(config)
    operations = full_passes * masked_lm.full_pass_flops(sizes, tokens, 1)
    partial = [(rows, tokens) for rows in stats.partial_rows]
    for rows, read in [*zip(stats.rows, stats.read, strict=True), *partial]:
        operations += masked_lm.cached_pass_flops(sizes, rows, read)
    metrics = {"tflop": operations / 1e12}
    if stats.rows:
        metrics |= {"rows_per_step": statistics.mean(stats.rows), "keys_read": statistics.mean(stats.read)}
    return metrics | ({"prompt_tokens_kept": statistics.mean(stats.kept)} if stats.kept else {})


def mean(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over several runs."""
    return {name: statistics.mean(m[name] for m in metrics) for name in metrics[0]}


@dataclass(frozen=True, kw_only=True)
class DecodingTask:
    """Base of the tasks: the response, one token a step, and its comparison with that of vanilla decoding."""

    extra_baselines: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "generate": ("fast-dllm", "fast-dllm-published"),
        "cached_step": ("fast-dllm",),
    }
    """Arms that times are compared with, besides vanilla decoding."""

    gen_length: int = 64
    """Tokens of the response, one a step."""
    block_length: int = 32
    """Tokens of a decoding block."""

    def __post_init__(self) -> None:
        for name in ("length", "timed_steps", "records", "prompts", "hidden"):
            if hasattr(self, name):
                check_least(self, **{name: 1})
        _ = self.decoding  # says what is out of range

    @property
    def decoding(self) -> DecodingOptions:
        """Options of `generate`."""
        return DecodingOptions(gen_length=self.gen_length, block_length=self.block_length, stop_at_eos=False)

    def response(self, prompt: int, steps: int | None = None) -> Measured:
        """One response, in the words of a plan."""
        work = Workload(length=prompt, new_tokens=self.gen_length, block_length=self.block_length, steps=steps)
        return Measured(work=work, phases={"generate": ""})

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Share of response tokens that vanilla decoding has too."""
        same = outcome.evidence == baseline.evidence
        return {"top1_agreement": same.float().mean().item()}  # type: ignore[union-attr]

    def outcome(self, config: Any, outputs: Sequence[Output], quality: dict[str, float], **more: Any) -> Outcome:
        """Mean times and counts of several responses."""
        passes = [counts(o.stats, config, o.sequences.shape[1], o.stats.refreshes) for o in outputs]
        evidence = torch.cat([output.response for output in outputs]).float().cpu()
        times = mean([seconds(output.stats) for output in outputs])
        return Outcome(seconds=times, quality=quality, counts=mean(passes), evidence=evidence, **more)


@dataclass(frozen=True, kw_only=True)
class Latency(DecodingTask):
    """Seconds of a response behind a prompt of random tokens; vanilla decoding is extrapolated from a few steps."""

    length: int = 8192
    """Tokens of the prompt."""
    timed_steps: int = 2
    """Steps of vanilla decoding that are run: all of them take the same, so the whole is steps times their median."""

    def measured(self) -> Measured:
        """One response."""
        return self.response(self.length)

    def small(self) -> Self:
        """A prompt of at most 1024 tokens and two blocks of 8."""
        return replace(self, length=min(self.length, 1024), gen_length=16, block_length=8, timed_steps=16)

    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Time one call of generate.

        Raises:
            UnsupportedModelError: an autoregressive model, or one without a mask token.
        """
        model = loaded.model
        masked_lm.check(model)
        ids = torch.randint(0, model.config.mask_token_id, (1, self.length), generator=generator).to(model.device)
        cached = keeps_cache(model)
        steps = None if cached else self.timed_steps
        output = current_generate(model)(ids, decoding=self.decoding, max_steps=steps)
        if cached:
            return self.outcome(model.config, [output], {})
        stats, times = output.stats, seconds(output.stats)
        times["generate"] = self.gen_length * times["refresh"]
        tokens = self.length + self.gen_length
        sizes = counts(stats, model.config, tokens, self.gen_length) | {"steps_timed": stats.refreshes}
        return Outcome(seconds=times, counts=sizes, evidence=output.response.float().cpu())

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Random tokens behind random tokens: nothing to compare."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Retrieval(DecodingTask):
    """Look up the values of keys in a prompt of records (a model such as ``wired-recall``): the truth is known."""

    length: int = 1024
    """Tokens of the prompt."""
    records: int = 32
    """Records in it."""
    prompts: int = 2
    """Prompts, one after the other."""

    def measured(self) -> Measured:
        """One response."""
        return self.response(self.length, self.gen_length // 2)

    def small(self) -> Self:
        """One prompt of at most 512 tokens."""
        return replace(self, length=min(self.length, 512), records=8, gen_length=16, block_length=8, prompts=1)

    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Accuracy over all masks of the responses.

        Raises:
            UnsupportedModelError: the model makes no recall prompts.
        """
        make = getattr(loaded.processor, "recall_prompt", None)
        if make is None:
            raise UnsupportedModelError(
                f"{loaded.name} makes no recall prompts; take wired-recall, or the task agreement"
            )
        outputs, right = [], []
        for _ in range(self.prompts):
            asked = make(self.length, self.records, self.gen_length, generator)
            ids, response = (t[None].to(loaded.model.device) for t in (asked.prompt, asked.response))
            outputs.append(current_generate(loaded.model)(ids, response=response, decoding=self.decoding))
            right.append((outputs[-1].response[0].cpu() == asked.answer)[asked.response != asked.answer])
        return self.outcome(loaded.model.config, outputs, {"accuracy": torch.cat(right).float().mean().item()})


@dataclass(frozen=True, kw_only=True)
class Agreement(DecodingTask):
    """Continue a real text and compare with vanilla decoding, token by token and by vanilla's own judgement."""

    length: int = 384
    """Tokens of the prompt."""
    prompts: int = 4
    """Places of the text that are continued, one after the other."""
    hidden: int = 4
    """Times that half of each response is hidden from the unchanged model, which then says how likely it is."""

    def measured(self) -> Measured:
        """One response."""
        return self.response(self.length)

    def small(self) -> Self:
        """One prompt of at most 128 tokens."""
        return replace(self, length=min(self.length, 128), gen_length=16, block_length=8, prompts=1, hidden=1)

    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Times, how well confidences predict what is unmasked, and the loss of the unchanged model on the result.

        Raises:
            UnsupportedModelError: the model has no tokenizer.
        """
        model, tokenizer = loaded.model, loaded.processor
        if tokenizer is None or hasattr(tokenizer, "recall_prompt"):
            raise UnsupportedModelError(f"{loaded.name} has no tokenizer, so it cannot continue a text")
        outputs, losses, samples = [], [], []
        for _ in range(self.prompts):
            ids = texts.window(tokenizer, "python-docs", self.length, generator)[None].to(model.device)
            outputs.append(current_generate(model)(ids, decoding=self.decoding, trace=True))
            losses += [masked_loss(model, outputs[-1], generator) for _ in range(self.hidden)]
            answer = tokenizer.decode(outputs[-1].response[0])
            samples.append(Sample(title=f"... {tokenizer.decode(ids[0, -80:])}", text=answer))
        trace = [step for output in outputs for step in output.stats.trace]
        quality = {
            "masked_nll": statistics.mean(losses),
            "confidence_correlation": correlation(trace),
            **{f"coverage_at_{k}": coverage(trace, k) for k in (1, 2, 4, 8)},
        }
        return self.outcome(model.config, outputs, quality, samples=tuple(samples[:3]))

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Share of tokens that vanilla decoding has too; loss of the result above that of vanilla's."""
        gap = outcome.quality["masked_nll"] - baseline.quality["masked_nll"]
        return super().compare(outcome, baseline) | {"nll_gap": gap}


@torch.no_grad()
def masked_loss(model: Any, output: Output, generator: torch.Generator) -> float:
    """Mean loss (nats a token) of the unchanged model on a random half of the response, seeing the other half."""
    tokens, length = output.sequences[:1].clone(), output.response.shape[1]
    start = tokens.shape[1] - length
    hidden = torch.randperm(length, generator=generator)[: max(1, length // 2)].to(tokens.device) + start
    truth: Int[Tensor, " k"] = tokens[0, hidden]
    tokens[0, hidden] = model.config.mask_token_id
    states = model.model(input_ids=tokens, use_cache=False).last_hidden_state  # no plan: the model's own attention
    logits = model.lm_head(states[0, hidden - masked_lm.logit_shift(model.config)]).float()
    return F.cross_entropy(logits, truth).item()
