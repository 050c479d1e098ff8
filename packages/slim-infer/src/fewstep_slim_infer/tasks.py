"""Tasks of long prompts: continue a real text, and find a sentence hidden in one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from fewstep.bench import Outcome, Sample
from fewstep.contract import Loaded
from fewstep.data import texts
from fewstep.families import causal_lm
from jaxtyping import Int
from torch import Tensor
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

    def small(self) -> Self:
        """A prompt of at most 640 tokens."""
        return replace(self, length=min(self.length, 640), new_tokens=min(self.new_tokens, 4))

    @torch.inference_mode()
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Time the prefill and the decoding; keep the log-probabilities of every scored position."""
        causal_lm.check_length(loaded, self.length, self.new_tokens)
        ids = texts.window(loaded.processor, self.text, self.length + self.new_tokens, generator)
        ids = ids[None].to(loaded.model.device)
        prompt, rest = ids[:, : self.length], ids[:, self.length :]
        logits, cache, ttft = causal_lm.prefill(loaded.model, prompt)
        flops = prefill_cost(loaded.model.config, cache, self.length)
        steps, decode = causal_lm.decode_known(loaded.model, rest, cache)
        log_probs = torch.cat([logits, *steps]).float().log_softmax(-1).cpu()
        nll = -log_probs.gather(1, rest[0].cpu()[:, None]).mean().item()
        decode_seconds = {"decode": decode / max(len(steps), 1)} if steps else {}
        tokenizer = loaded.processor
        said = tokenizer.decode(log_probs.argmax(-1))
        return Outcome(
            seconds={"ttft": ttft, **decode_seconds},
            quality={"nll": nll},
            counts=kv_counts(cache) | flops,
            evidence=log_probs,
            samples=(Sample(title=f"... {tokenizer.decode(prompt[0, -60:])}", text=said),),
        )

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """KL(dense || method) in nats and top-1 agreement, mean over positions; loss above dense's.

        And the speed-up of the prefill that its FLOPs allow, with the share of it that was reached.
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
    """Hide "The secret code of Maria is 9916." in a real text and let the model complete the same sentence."""

    length: int = 1536
    """Tokens of the prompt."""
    needles: int = 12
    """Prompts, each with its own name, code and depth from 5 % to 95 %."""
    text: texts.Text = "python-docs"
    """The text; all but ``python-docs`` need a package of the npm registry."""

    def small(self) -> Self:
        """One prompt of at most 640 tokens."""
        return replace(self, length=min(self.length, 640), needles=1)

    @torch.inference_mode()
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Right when the four digits are among the first five tokens of the greedy answer."""
        causal_lm.check_length(loaded, self.length, 5)
        hits, seconds, evidence, samples = [], [], [], []
        for n in range(self.needles):
            prompt, _, question, code = self.prompt(loaded.processor, n, generator)
            logits, cache, ttft = causal_lm.prefill(loaded.model, prompt[None].to(loaded.model.device))
            answer = loaded.processor.decode(causal_lm.greedy(loaded.model, logits, cache, 5))
            hits.append(code in answer.replace(" ", ""))
            seconds.append(ttft)
            evidence.append(logits.float().cpu())
            samples.append(Sample(title=f"{question.strip()} ({code})", text=answer))
        return Outcome(
            seconds={"ttft": sum(seconds) / len(seconds)},
            quality={"accuracy": sum(hits) / len(hits)},
            counts=kv_counts(cache),
            evidence=torch.cat(evidence),
            samples=tuple(samples[:4]),
        )

    def prompt(
        self, tokenizer: Any, n: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, " n"], tuple[int, int], str, str]:
        """The `n`-th prompt, the tokens that hold the needle, the question and the code."""
        name = NAMES[n % len(NAMES)]
        code = str(int(torch.randint(1000, 10000, (1,), generator=generator)))
        question = f"\n\nThe secret code of {name} is"
        needle = f"The secret code of {name} is {code}."
        extra = sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (f" {needle}", question))
        haystack = texts.window(tokenizer, self.text, self.length - extra, generator)
        depth = 0.05 + 0.9 * (n + 0.5) / self.needles
        prompt, span = texts.hide(tokenizer, haystack, needle, question, depth)
        return prompt, span, question, code

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Accuracy is absolute; nothing to compare."""
        return {}


def prefill_cost(config: Any, cache: Cache, length: int) -> dict[str, float]:
    """Operations of a prompt of `length` tokens just read, in 10^12; nothing for a method that computes beside it."""
    if isinstance(cache, SlimCache):
        tokens = [stage.tokens[0] for stage in cache.stages for _ in stage.layers]
    elif cache.get_seq_length() == length:
        tokens = [length] * config.num_hidden_layers
    else:
        return {}
    return {"prefill_tflop": causal_lm.prefill_flops(config, tokens) / 1e12}


def kv_counts(cache: Cache) -> dict[str, float]:
    """Bytes of keys and values at the end, and tokens that the layers cache on average."""
    keys = [layer.keys for layer in cache.layers]
    return {
        "kv_bytes": float(sum(2 * k.numel() * k.element_size() for k in keys)),
        "tokens_per_layer": sum(k.shape[2] for k in keys) / len(keys),
    }
