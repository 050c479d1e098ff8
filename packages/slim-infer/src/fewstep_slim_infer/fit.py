"""Find SlimInfer's entry layers for an unknown model by planting facts (the probe behind figure 2 of arXiv:2508.06447).

Two questions for each layer: do its scores find the block that holds a planted fact, and does the model still answer
when that block is dropped before the layer, because its content has already spread to other positions?
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from fewstep.contract import Loaded
from fewstep.data import texts
from fewstep.errors import BadFileError, FewstepError
from fewstep.families import causal_lm
from fewstep.kernels.unit_score import unit_score
from jaxtyping import Int
from rich.progress import Progress, TimeRemainingColumn
from torch import Tensor

from .decoder import SlimDecoder
from .method import SlimInfer, install
from .options import Score
from .tasks import Needle

FINDS, SURVIVES = 0.10, 0.75


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A prompt with a planted fact."""

    prompt: Int[Tensor, " n"]
    span: tuple[int, int]
    """Tokens that hold the fact."""
    code: str
    """What the answer must contain."""


class Ranks(SlimDecoder):
    """Prunes nothing; notes at every layer how far down the ranking the fact's best block stands (0 to 1)."""

    fact: Fact
    found: dict[str, list[float]]

    def select(self, query: Tensor, keys: Tensor, number: Tensor, prompt: int, segment: int) -> Int[Tensor, " k"]:
        """Keep every block."""
        block, unit = self.settings.block, self.settings.unit
        local = query[:, -self.settings.window :].float().mean(1)
        held = _blocks(self.fact, block)
        for score in get_args(Score):
            ranked = unit_score(local, keys, block=block, unit=unit, score=score).argsort(descending=True)
            place = torch.isin(ranked, held.to(ranked.device)).nonzero().min()
            self.found.setdefault(score, []).append(place.item() / ranked.numel())
        return torch.arange(-(-prompt // block), device=number.device)


class Drops(SlimDecoder):
    """Drops exactly the blocks that hold the fact."""

    fact: Fact

    def select(self, query: Tensor, keys: Tensor, number: Tensor, prompt: int, segment: int) -> Int[Tensor, " k"]:
        """All other blocks."""
        block = self.settings.block
        every = torch.arange(-(-prompt // block), device=number.device)
        return every[~torch.isin(every, _blocks(self.fact, block).to(every.device))]


def _blocks(fact: Fact, block: int) -> Int[Tensor, " k"]:
    return torch.arange(fact.span[0] // block, (fact.span[1] - 1) // block + 1)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Plant facts in a real text and watch each layer; proposes entry layers and a score for this model."""

    length: int = 1536
    """Tokens of each prompt."""
    prompts: int = 6
    """Prompts with a planted fact. Those that the unchanged model gets wrong are left out."""
    every: int = 2
    """Drop the fact before every so many layers; 1 is slowest and finest."""
    block: int = 32
    """Block size to probe and propose."""
    text: texts.Text = "python-docs"
    """Text around the facts."""
    seed: int = 0
    """Of texts and codes."""
    resume: bool = True
    """Go on with what an interrupted probe of this folder measured."""

    def __call__(self, loaded: Loaded, out: Path) -> SlimInfer:
        """Measure, with progress and a log in ``out/probe.jsonl``, and propose a method."""
        causal_lm.check(loaded.model)
        causal_lm.check_length(loaded, self.length, 5)
        with Progress(*Progress.get_default_columns()[:-1], TimeRemainingColumn(), transient=True) as bar:
            return SlimInfer.fit(
                loaded.model,
                self.facts(loaded.processor),
                decode=loaded.processor.decode,
                block=self.block,
                every=self.every,
                log=out / "probe.jsonl",
                resume=self.resume,
                track=lambda steps, total: bar.track(steps, total, description="probing"),
            )

    def facts(self, tokenizer: Any) -> list[Fact]:
        """The prompts, a function of `seed`."""
        generator = torch.Generator().manual_seed(self.seed)
        task = Needle(length=self.length, needles=self.prompts, text=self.text)
        made = (task.prompt(tokenizer, n, generator) for n in range(self.prompts))
        return [Fact(prompt=prompt, span=span, code=code) for prompt, span, _, code in made]


@torch.inference_mode()
def fit(
    model: Any,
    data: list[Fact],
    *,
    decode: Callable[[list[int]], str],
    block: int,
    every: int,
    log: Path,
    resume: bool,
    track: Callable[[Iterable, int], Iterable],
) -> SlimInfer:
    """Probe `model`; see `SlimInfer.fit`."""
    layers = model.config.num_hidden_layers
    done = _read(log) if resume else {}
    log.parent.mkdir(parents=True, exist_ok=True)
    if not resume:
        log.unlink(missing_ok=True)
    candidates = list(range(1 + every, layers, every))
    jobs = [(n, layer) for n in range(len(data)) for layer in (None, *candidates)]
    for n, layer in track(jobs, len(jobs)):
        key = (n, block, layer, data[n].code)
        if key in done or (layer is not None and not done[n, block, None, data[n].code]["right"]):
            continue
        done[key] = _measure(model, data[n], layer, block, decode)
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, **done[key]}) + "\n")
    return propose(
        [done[k] for k in done if k[2] is None], {k: v for k, v in done.items() if k[2] is not None}, layers, block
    )


def _measure(model: Any, fact: Fact, layer: int | None, block: int, decode: Callable) -> dict[str, Any]:
    """Ranks at every layer and whether the answer is right (no layer), or whether it is right without the fact."""
    entry = tuple(range(1, model.config.num_hidden_layers)) if layer is None else (layer,)
    settings = SlimInfer(entry=entry, keep=1.0, block=block, score="dot").resolve(model.config)
    with install(model, settings, settings, Ranks if layer is None else Drops) as applied:
        probe: Any = applied.decoder
        probe.fact, probe.found = fact, {}
        logits, cache, _ = causal_lm.prefill(model, fact.prompt[None].to(model.device))
        answer = decode(causal_lm.greedy(model, logits, cache, 5))
        return {"right": fact.code in answer.replace(" ", ""), "ranks": probe.found}


def propose(dense: list[dict], dropped: dict[tuple, dict], layers: int, block: int) -> SlimInfer:
    """First entry where scores find the fact, second where losing it does no harm, third near the end.

    Raises:
        FewstepError: the unchanged model answers too few prompts for a conclusion.
    """
    right = [d for d in dense if d["right"]]
    if len(right) < max(2, len(dense) // 2):
        raise FewstepError(
            f"the unchanged model answers only {len(right)} of {len(dense)} probes: shorter prompts (--length) may help"
        )
    rank = {
        score: [sum(d["ranks"][score][i] for d in right) / len(right) for i in range(layers - 1)]
        for score in get_args(Score)
    }
    survives: dict[int, list[bool]] = {}
    for (_, _, layer, _), result in dropped.items():
        survives.setdefault(layer, []).append(result["right"])
    harmless = [la for la in sorted(survives) if sum(survives[la]) >= SURVIVES * len(survives[la])]
    # ranks[i] is what layer i sees, so the pruned sequence starts at layer i + 1
    first = {s: next((i + 1 for i, r in enumerate(rank[s]) if r <= FINDS and i >= layers // 4), layers) for s in rank}
    score = min(first, key=lambda s: (first[s], sum(rank[s][layers // 2 :])))
    second = next((la for la in harmless if la > first[score]), None)
    if second is None:
        raise FewstepError("no layer found after which the planted facts may be dropped; raise --prompts or --every 1")
    third = max(second + 1, round(layers * 28 / 30))
    entry = (first[score], second) if third >= layers else (first[score], second, third)
    return SlimInfer(entry=entry, keep=0.25, block=block, score=score)


def _read(log: Path) -> dict[tuple, dict]:
    if not log.exists():
        return {}
    whole, _, _ = log.read_bytes().rpartition(b"\n")  # a killed probe may leave half a line
    log.write_bytes(whole + b"\n" if whole else b"")
    done = {}
    for number, line in enumerate(whole.decode().splitlines(), 1):
        try:
            record = json.loads(line)
            done[tuple(record.pop("key"))] = record
        except (ValueError, KeyError, TypeError) as error:
            raise BadFileError(f"{log}:{number} is damaged; delete it, or start again with --no-resume") from error
    return done
