"""Find SlimInfer's entry layers for an unknown model by planting facts (the probe behind figure 2 of arXiv:2508.06447).

Facts, wordings and documents are those of the tuning half: what ``planted-facts`` measures on is never looked at.
Two questions for each layer: do its scores find the block that holds a planted fact, and does the model still answer
when that block is dropped before the layer, because its content has already spread to other positions?
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
from fewstep.contract import Loaded
from fewstep.data.documents import named
from fewstep.data.facts import ANSWER_TOKENS, PlantedFact
from fewstep.errors import FewstepError, check_least
from fewstep.families import causal_lm
from fewstep.fitting import Journal, progress_bar
from fewstep.kernels.unit_score import unit_score
from jaxtyping import Int
from torch import Tensor

from .method import SlimInfer, install
from .retrieval import Retrieval
from .select import BlockScore

SCORES: tuple[BlockScore, ...] = get_args(BlockScore)
FINDS, SURVIVES = 0.10, 0.75
"""Rank of the fact's block at which scores find it; share of right answers at which losing the fact does no harm."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Plant facts in real documents and watch each layer; proposes entry layers and a score for this model.

    Raises:
        ValueError: a document does not belong to the tuning half.
    """

    length: int = 1536
    """Tokens of each prompt."""
    prompts: int = 8
    """Prompts with a planted fact, some with a second one. Those that the unchanged model gets wrong are left out."""
    every: int = 2
    """Drop the fact before every so many layers; 1 is slowest and finest."""
    block: int = 32
    """Block size to probe and propose."""
    documents: tuple[str, ...] = ("python-docs", "numpy-licence", "argparse", "characters")
    """Documents around the facts, of the tuning half. Default: those that are always here."""
    seed: int = 0
    """Draws texts and codes."""
    resume: bool = True
    """Go on with the measurements of an interrupted probe in this folder."""

    def __post_init__(self) -> None:
        check_least(self, length=1, prompts=1, every=1, block=1)
        named(self.documents, "tuning")

    def __call__(self, loaded: Loaded, out: Path) -> SlimInfer:
        """Measure, with progress and a journal in ``out/probe.jsonl``, and propose a method.

        Raises:
            UnsupportedModelError: the method cannot be applied to this model, or it has no tokenizer.
            FewstepError: the probe of this folder had other settings, or the measurements allow no proposal.
            BadFileError: the journal is damaged.
        """
        causal_lm.check(loaded.model)
        causal_lm.check_length(loaded, self.length, ANSWER_TOKENS)
        settings = {name: value for name, value in asdict(self).items() if name not in ("every", "resume")}
        journal = Journal(out / "probe.jsonl", {"model": loaded.name, **settings}, resume=self.resume)
        generator = torch.Generator().manual_seed(self.seed)
        task = Retrieval(split="tuning", length=self.length, prompts=self.prompts, documents=self.documents)
        facts = list(task.questions(loaded.processor, generator))
        with progress_bar() as bar:
            track, decode = partial(bar.track, description="probing"), loaded.processor.decode
            sizes = {"block": self.block, "every": self.every}
            return fit(loaded.model, facts, decode=decode, journal=journal, track=track, **sizes)


@torch.inference_mode()
def fit(
    model: Any,
    facts: list[PlantedFact],
    *,
    decode: Callable[[list[int]], str],
    journal: Journal,
    block: int = 32,
    every: int = 2,
    track: Callable[[list], Iterable] = iter,
) -> SlimInfer:
    """Propose entry layers and a score for `model` from prompts with a planted fact.

    Args:
        model: as for `SlimInfer.apply`.
        facts: the prompts.
        decode: token ids to text.
        journal: keeps each measurement.
        block: tokens in a block.
        every: drop the fact before every so many layers.
        track: wraps the list of measurements to show progress.

    Raises:
        FewstepError: the model answers too few prompts, or no layer lets go of a fact.
    """
    layers = model.config.num_hidden_layers
    dense: list[dict[str, Any]] = []
    dropped: dict[int, list[bool]] = {}
    places = (None, *range(1 + every, layers, every))
    for n, layer in track(list(product(range(len(facts)), places))):
        if layer is not None and not dense[n]["right"]:
            continue
        measured = journal.get([n, layer]) or journal.put([n, layer], _measure(model, facts[n], layer, block, decode))
        if layer is None:
            dense.append(measured)
        else:
            dropped.setdefault(layer, []).append(measured["right"])
    return propose(dense, dropped, layers, block)


def _measure(model: Any, fact: PlantedFact, layer: int | None, block: int, decode: Callable) -> dict[str, Any]:
    """Ranks at every layer and whether the answer is right (no layer), or whether it is right without the fact."""
    ranks: dict[str, list[float]] = {score: [] for score in SCORES}
    held = torch.arange(fact.span[0] // block, (fact.span[1] - 1) // block + 1, device=model.device)
    every = torch.arange(-(-fact.prompt.numel() // block), device=model.device)

    def rank(settings: Any, query: Tensor, keys: Tensor, *_: Any) -> Int[Tensor, " k"]:
        """Keep every block; note the rank of the fact's best one, 0 (first) to 1."""
        local = query[:, -settings.window :].float().mean(1)
        for score in SCORES:
            ranked = unit_score(local, keys, block=block, unit=settings.unit, score=score).argsort(descending=True)
            ranks[score].append(torch.isin(ranked, held).nonzero().min().item() / ranked.numel())
        return every

    def drop(*_: Any) -> Int[Tensor, " k"]:
        return every[~torch.isin(every, held)]

    entry = tuple(range(1, model.config.num_hidden_layers)) if layer is None else (layer,)
    settings = SlimInfer(entry=entry, keep=1.0, block=block, score="dot").resolve(model.config)
    with install(model, settings, settings, rank if layer is None else drop):
        logits, cache, _ = causal_lm.prefill(model, fact.prompt[None].to(model.device))
        answer = decode(causal_lm.greedy(model, logits, cache, ANSWER_TOKENS))
    return {"right": fact.answered_by(answer), "ranks": ranks}


def propose(dense: list[dict], dropped: Mapping[int, list[bool]], layers: int, block: int) -> SlimInfer:
    """First entry where scores find the fact, second where losing it does no harm, third near the end.

    Args:
        dense: for each prompt, whether the answer was ``right`` and ``ranks[score][layer]`` of the fact's block.
        dropped: by layer before which the fact was dropped, whether the answers were right nevertheless.
        layers: layers of the model.
        block: block size to propose.

    Raises:
        FewstepError: the unchanged model answers too few prompts, or no layer lets go of a fact.
    """
    right = [d for d in dense if d["right"]]
    if len(right) < max(2, len(dense) // 2):
        raise FewstepError(
            f"the unchanged model answers only {len(right)} of {len(dense)} probes: shorter prompts (--length) may help"
        )
    rank = {s: [sum(d["ranks"][s][i] for d in right) / len(right) for i in range(layers - 1)] for s in SCORES}
    harmless = [layer for layer in sorted(dropped) if sum(dropped[layer]) >= SURVIVES * len(dropped[layer])]
    # ranks[i] is what layer i sees, so the pruned sequence starts at layer i + 1
    first = {s: next((i + 1 for i, r in enumerate(rank[s]) if r <= FINDS and i >= layers // 4), layers) for s in SCORES}
    score = min(SCORES, key=lambda s: (first[s], sum(rank[s][layers // 2 :])))
    second = next((layer for layer in harmless if layer > first[score]), None)
    if second is None:
        raise FewstepError("no layer found after which the planted facts may be dropped; raise --prompts or --every 1")
    third = max(second + 1, round(layers * 28 / 30))
    entry = (first[score], second) if third >= layers else (first[score], second, third)
    return SlimInfer(entry=entry, keep=0.25, block=block, score=score)
