"""Task of many documents and wordings: answer questions about facts planted in them, on one half or the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from fewstep.bench import Outcome, Sample
from fewstep.contract import Loaded
from fewstep.data.documents import Split, named
from fewstep.data.facts import ANSWER_TOKENS, WORDINGS, PlantedFact, ask
from fewstep.families import causal_lm
from fewstep.families.kv_cache import cache_sizes

GOLDEN = 0.6180339887
"""Multiples of the golden ratio, modulo 1, spread any number of depths evenly."""


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Answer questions about facts planted in real documents of several kinds, worded in several ways.

    Documents and wordings come in two halves: choose settings on ``tuning``, state what ``held-out`` gives.
    """

    split: Split = "held-out"
    """Half of the documents and wordings."""
    length: int = 1024
    """Tokens of each prompt."""
    prompts: int = 36
    """Prompts: they go through documents, wordings and depths in turn; every third has two facts,
    of which the question states one and asks for the other."""
    documents: tuple[str, ...] = ()
    """Names of documents of this half. Default: all of it, of which some need a package of the npm registry."""

    def __post_init__(self) -> None:
        if self.prompts < 1:
            raise ValueError(f"prompts={self.prompts} must be at least 1")
        named(self.documents, self.split)

    def small(self) -> Self:
        """One prompt of at most 512 tokens."""
        return replace(self, length=min(self.length, 512), prompts=1)

    def questions(self, tokenizer: Any, generator: torch.Generator) -> Iterator[PlantedFact]:
        """The prompts, made one by one.

        Raises:
            AssetMissing: a document is not here; the message names the command that installs it.
            ValueError: a document is too short.
        """
        chosen = named(self.documents, self.split)
        wordings = [wording for wording in WORDINGS if wording.split == self.split]
        first = int(torch.randint(len(chosen) * 12, (1,), generator=generator))  # repeats go on at other places
        for n in range(first, first + self.prompts):
            turn = n // len(chosen) + n % len(chosen)  # else each document would always meet the same wordings
            how = {"depth": n * GOLDEN % 1, "facts": 2 if turn % 3 == 0 else 1, "length": self.length}
            document, wording = chosen[n % len(chosen)], wordings[turn % len(wordings)]
            yield ask(tokenizer, document, wording, **how, generator=generator)

    @torch.inference_mode()
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Count an answer as right when its first tokens hold the value.

        Raises:
            UnsupportedModelError: not a language model with a tokenizer.
            ValueError: more tokens than the model has positions, or than a document has.
        """
        causal_lm.check_length(loaded, self.length, ANSWER_TOKENS)
        hits, seconds, evidence, samples = [], [], [], []
        for question in self.questions(loaded.processor, generator):
            logits, cache, ttft = causal_lm.prefill(loaded.model, question.prompt[None].to(loaded.model.device))
            answer = loaded.processor.decode(causal_lm.greedy(loaded.model, logits, cache, ANSWER_TOKENS))
            hits.append(question.answered_by(answer))
            seconds.append(ttft)
            evidence.append(torch.cat([logits[0].float().cpu(), torch.tensor(hits[-1:]).float()]))
            title = f"{question.source}: {question.question} ({question.value})"
            samples.append(Sample(title=title, text=answer))
        return Outcome(
            seconds={"ttft": sum(seconds) / len(seconds)},
            quality={"accuracy": sum(hits) / len(hits)},
            counts=cache_sizes(cache),
            evidence=torch.stack(evidence),
            samples=tuple(samples[:6]),
        )

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Share of the questions that the dense model answers which are answered still; nothing where it answers none.

        The last column of the evidence, behind the logits after each prompt, says which are right.
        """
        dense, other = (o.evidence[:, -1] for o in (baseline, outcome) if o.evidence is not None)
        return {"kept": ((dense * other).sum() / dense.sum()).item()} if dense.any() else {}
