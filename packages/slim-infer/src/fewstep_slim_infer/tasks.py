"""Tasks of long prompts: continue a real text, and find a sentence hidden in one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from fewstep.bench import Outcome, Sample
from fewstep.contract import Loaded
from fewstep.data import texts
from fewstep.data.facts import PlantedFact
from fewstep.errors import check_least
from fewstep.families import causal_lm
from fewstep.families.kv_cache import cache_sizes
from fewstep.roofline import Measured, Workload
from transformers.cache_utils import Cache

from .cache import SlimCache

NAMES = ("Maria", "Peter", "Anna", "James", "Laura", "David", "Helen", "Simon", "Clara", "Oscar", "Julia", "Henry")


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Read a prompt from a real text, then its true continuation token by token.

    Both arms read the same tokens, so that every step can be compared: KL divergence and top-1 agreement with the
    dense model, and the loss on the real text.
    """

    length: int = 4096
    """Tokens of the prompt."""
    new_tokens: int = 32
    """Tokens of the true continuation that are scored and decoded."""
    text: texts.Text = "python-docs"
    """The text; all but ``python-docs`` need a package of the npm registry."""

    def __post_init__(self) -> None:
        check_least(self, length=1, new_tokens=1)

    def measured(self) -> Measured:
        """One prompt, and its continuation token by token."""
        work = Workload(length=self.length, new_tokens=self.new_tokens)
        return Measured(work=work, phases={"ttft": "prefill", "decode": "decode"})

    def small(self) -> Self:
        """A prompt of at most 640 tokens."""
        return replace(self, length=min(self.length, 640), new_tokens=min(self.new_tokens, 4))

    @torch.inference_mode()
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Time the prefill and the decoding; keep the log-probabilities of every scored position.

        Raises:
            UnsupportedModelError: not a language model with a tokenizer.
            ValueError: more tokens than the model has positions, or than the text has.
        """
        causal_lm.check_length(loaded, self.length, self.new_tokens)
        ids = texts.window(loaded.processor, self.text, self.length + self.new_tokens, generator)
        ids = ids[None].to(loaded.model.device)
        prompt, rest = ids[:, : self.length], ids[:, self.length :]
        logits, cache, ttft = causal_lm.prefill(loaded.model, prompt)
        flops = prefill_cost(loaded.model.config, cache, self.length)
        steps, decode = causal_lm.decode_known(loaded.model, rest, cache)
        log_probs = torch.cat([logits, *steps]).float().log_softmax(-1).cpu()
        nll = -log_probs.gather(1, rest[0].cpu()[:, None]).mean().item()
        title, text = (loaded.processor.decode(ids) for ids in (prompt[0, -60:], log_probs.argmax(-1)))
        return Outcome(
            seconds={"ttft": ttft} | ({"decode": decode / len(steps)} if steps else {}),
            quality={"nll": nll},
            counts=cache_sizes(cache) | flops,
            evidence=log_probs,
            samples=(Sample(title=f"... {title}", text=text),),
        )

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """KL(dense || method) in nats and top-1 agreement, mean over positions; loss above dense's.

        With the ratio of prefill FLOPs, the speed-up that they allow, goes the share of it that was reached.
        """
        dense, other = (o.evidence for o in (baseline, outcome) if o.evidence is not None)
        allowed = {}
        if "prefill_tflop" in outcome.counts:
            ratio = baseline.counts["prefill_tflop"] / outcome.counts["prefill_tflop"]
            reached = baseline.seconds["ttft"] / outcome.seconds["ttft"] / ratio
            allowed = {"flop_ratio": ratio, "share_of_flop_ratio": reached}
        return allowed | {
            "kl": (dense.exp() * (dense - other)).sum(-1).mean().item(),
            "top1_agreement": (dense.argmax(-1) == other.argmax(-1)).float().mean().item(),
            "nll_gap": outcome.quality["nll"] - baseline.quality["nll"],
        }


@dataclass(frozen=True, kw_only=True)
class Needle:
    """Hide "The secret code of Maria is 9916." in a real text and let the model complete the same sentence.

    One wording that settings were chosen on: good for times, while ``planted-facts`` says what a setting finds.
    """

    length: int = 1536
    """Tokens of the prompt."""
    needles: int = 12
    """Prompts, each with its own name, code and depth from 5 % to 95 %."""
    text: texts.Text = "python-docs"
    """The text; all but ``python-docs`` need a package of the npm registry."""

    def __post_init__(self) -> None:
        check_least(self, length=1, needles=1)

    def measured(self) -> Measured:
        """One prompt."""
        return Measured(work=Workload(length=self.length, new_tokens=5), phases={"ttft": "prefill"})

    def small(self) -> Self:
        """One prompt of at most 640 tokens."""
        return replace(self, length=min(self.length, 640), needles=1)

    @torch.inference_mode()
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Count an answer as right when the four digits are among its first five greedy tokens.

        Raises:
            UnsupportedModelError: not a language model with a tokenizer.
            ValueError: more tokens than the model has positions, or than the text has.
        """
        causal_lm.check_length(loaded, self.length, 5)
        hits, seconds, evidence, samples = [], [], [], []
        for n in range(self.needles):
            fact = self.prompt(loaded.processor, n, generator)
            logits, cache, ttft = causal_lm.prefill(loaded.model, fact.prompt[None].to(loaded.model.device))
            answer = loaded.processor.decode(causal_lm.greedy(loaded.model, logits, cache, 5))
            hits.append(fact.answered_by(answer))
            seconds.append(ttft)
            evidence.append(logits.float().cpu())
            samples.append(Sample(title=f"{fact.question} ({fact.value})", text=answer))
        return Outcome(
            seconds={"ttft": sum(seconds) / len(seconds)},
            quality={"accuracy": sum(hits) / len(hits)},
            counts=cache_sizes(cache),
            evidence=torch.cat(evidence),
            samples=tuple(samples[:4]),
        )

    def prompt(self, tokenizer: Any, n: int, generator: torch.Generator) -> PlantedFact:
        """The `n`-th prompt.

        Raises:
            ValueError: the text is too short for it, or the prompt for the fact and the question.
        """
        name = NAMES[n % len(NAMES)]
        code = str(int(torch.randint(1000, 10000, (1,), generator=generator)))
        question, needle = f"\n\nThe secret code of {name} is", f"The secret code of {name} is {code}."
        extra = sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (f" {needle}", question))
        if self.length <= extra:
            raise ValueError(f"length={self.length}: the fact and the question alone are {extra} tokens of this model")
        haystack = texts.window(tokenizer, self.text, self.length - extra, generator)
        depth = 0.05 + 0.9 * (n + 0.5) / self.needles
        prompt, span = texts.hide(tokenizer, haystack, needle, question, depth)
        return PlantedFact(prompt=prompt, span=span, question=question.strip(), value=code, source=self.text)

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Accuracy is absolute; nothing to compare."""
        return {}


def prefill_cost(config: Any, cache: Cache, length: int) -> dict[str, float]:
    """Operations of a prompt of `length` tokens just read, in 10^12; empty for a method that computes elsewhere too."""
    if isinstance(cache, SlimCache):
        tokens = [segment.tokens[0] for segment in cache.segments for _ in segment.layers]
    elif cache.get_seq_length() == length:
        tokens = [length] * config.num_hidden_layers
    else:
        return {}
    return {"prefill_tflop": causal_lm.prefill_flops(config, tokens) / 1e12}
