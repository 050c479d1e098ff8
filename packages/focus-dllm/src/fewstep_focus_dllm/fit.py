"""Fit `last_dense` and `min_focus` to a model: how well confidences predict, and from which layer on sinks agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fewstep.contract import Loaded
from fewstep.data import texts
from fewstep.errors import check_least
from fewstep.families import masked_lm
from fewstep.fitting import Journal, progress_bar
from jaxtyping import Int
from torch import Tensor

from .decoders import CachedDecoder
from .decoding import BlockLogits, DecodingOptions, State, coverage
from .generation import generate
from .method import FocusDLLM
from .selection import top
from .sparse import attend_and_weigh

COVERED = 0.99
"""Share of unmasked tokens that the focus positions should have predicted."""
AGREED = 0.9
"""Share of the best overlap of sinks that any early layer has with the deeper ones: the first to reach it is taken."""
COUNTS = (1, 2, 4, 8, 16)
"""Numbers of focus positions that are tried."""


class ProbeDecoder(CachedDecoder):
    """Vanilla decoding that notes the sinks of each layer at the first step of each block, as its rows see them."""

    def __init__(self, model: Any, state: State, count: int) -> None:
        super().__init__(model, state)
        self.limit = min(count, max(1, state.prompt // 4))  # all positions of a prompt would agree
        self.sinks: dict[int, list[set[int]]] = {}

    def first_step(self) -> BlockLogits:
        plan = self.plan()

        def attention(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            rows = query[:, :, self.state.block.start : self.state.block.end]
            equal = rows.new_full((len(rows), rows.shape[2]), 1 / rows.shape[2], dtype=torch.float32)
            _, mass = attend_and_weigh(rows, key, value, self.allowed, scale, equal)
            sinks = top(mass[0, : self.state.prompt], self.limit)
            self.sinks.setdefault(layer, []).append(set(sinks.tolist()))
            return plan(layer, query, key, value, scale)

        return self.full_pass(attention)

    def later_step(self) -> BlockLogits:
        return self.full_pass(self.plan())


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Decode some real prompts by vanilla decoding, watch confidences and sinks, and propose a `FocusDLLM`."""

    length: int = 384
    """Tokens of each prompt."""
    prompts: int = 4
    """Prompts."""
    gen_length: int = 64
    """Tokens of each response, one a step."""
    block_length: int = 32
    """Tokens of a decoding block."""
    sinks: int = 64
    """Sinks to compare between layers, and to propose."""
    seed: int = 0
    """Seed of the prompts."""
    resume: bool = True
    """Go on with what an interrupted probe of this folder measured."""

    def __post_init__(self) -> None:
        check_least(self, length=1, prompts=1, sinks=0)
        DecodingOptions(gen_length=self.gen_length, block_length=self.block_length)  # says what is out of range

    def __call__(self, loaded: Loaded, out: Path) -> FocusDLLM:
        """Measure, with progress and a journal in ``out/probe.jsonl``, and propose a method.

        Raises:
            UnsupportedModelError: an autoregressive model, or one without a mask token.
            FewstepError: the journal was begun with other settings.
            BadFileError: the journal is damaged.
        """
        masked_lm.check(loaded.model)
        names = ("length", "gen_length", "block_length", "sinks", "seed")
        settings = {"model": loaded.name, **{name: getattr(self, name) for name in names}}
        journal, records = Journal(out / "probe.jsonl", settings, resume=self.resume), []
        with progress_bar() as bar:
            for number, prompt in enumerate(bar.track(self.inputs(loaded), description="probing")):
                records.append(journal.get(number) or journal.put(number, self._measure(loaded.model, prompt)))
        return propose(records, self.sinks)

    def inputs(self, loaded: Loaded) -> list[Int[Tensor, " n"]]:
        """The prompts, a function of `seed`: real text, or random tokens for a model without a tokenizer."""
        generator = torch.Generator().manual_seed(self.seed)
        if not callable(loaded.processor):
            size = loaded.model.config.mask_token_id
            return [torch.randint(0, size, (self.length,), generator=generator) for _ in range(self.prompts)]
        return [texts.window(loaded.processor, "python-docs", self.length, generator) for _ in range(self.prompts)]

    def _measure(self, model: Any, prompt: Int[Tensor, " n"]) -> dict[str, Any]:
        """Coverage by number of focus positions, and mean overlap of each layer's sinks with those of deeper layers."""
        decoders = []

        def make(model: Any, state: State) -> ProbeDecoder:
            decoders.append(ProbeDecoder(model, state, self.sinks))
            return decoders[0]

        decoding = DecodingOptions(gen_length=self.gen_length, block_length=self.block_length, stop_at_eos=False)
        with FocusDLLM().apply(model):  # plans need its attention function
            output = generate(model, prompt[None].to(model.device), decoding=decoding, make=make, trace=True)
        sinks = decoders[0].sinks
        covered = {str(k): coverage(output.stats.trace, k) for k in COUNTS}
        return {"coverage": covered, "overlap": [_overlap(sinks, layer) for layer in range(len(sinks) - 1)]}


def _overlap(sinks: dict[int, list[set[int]]], layer: int) -> float:
    """Mean Jaccard index of a layer's sinks and those of each deeper layer, over blocks."""
    deeper = range(layer + 1, len(sinks))
    pairs = [pair for other in deeper for pair in zip(sinks[layer], sinks[other], strict=True)]
    return sum(len(one & other) / len(one | other) for one, other in pairs) / len(pairs)


def propose(records: Sequence[dict[str, Any]], sinks: int) -> FocusDLLM:
    """The fewest focus positions that covered `COVERED`; the first layer whose sinks agree with the deeper ones."""
    mean = {k: sum(r["coverage"][str(k)] for r in records) / len(records) for k in COUNTS}
    count = next((k for k in COUNTS if mean[k] >= COVERED), COUNTS[-1])
    layers = len(records[0]["overlap"]) + 1
    overlap = [sum(r["overlap"][i] for r in records) / len(records) for i in range(max(1, layers // 2))]
    last = next(i for i, share in enumerate(overlap) if share >= AGREED * max(overlap))
    return FocusDLLM(last_dense=last, min_focus=count, sinks=sinks)
