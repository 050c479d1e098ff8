"""Find `last_dense` and `min_focus` for a model: how well confidences predict, and from which layer sinks agree."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fewstep.contract import Loaded
from fewstep.data import texts
from fewstep.errors import BadFileError
from fewstep.families import masked_lm
from jaxtyping import Int
from rich.progress import Progress, TimeRemainingColumn
from torch import Tensor

from .attend import Full, attend_and_weigh
from .confidence import coverage
from .decoder import Caching
from .decoding import Decoding
from .generation import generate
from .method import FocusDLLM
from .state import Answers

COVERED = 0.99
"""Share of unmasked tokens that the focus positions should have predicted."""
AGREED = 0.9
"""Of the best overlap of sinks that any early layer has with the deeper ones: the first layer to reach it is taken."""
COUNTS = (1, 2, 4, 8, 16)


class Masses(Full):
    """A full pass that notes the sinks of each layer, as the rows of the block see them."""

    def __init__(self, decoder: Watching) -> None:
        super().__init__(decoder.cache, decoder.allowed)
        self.decoder = decoder

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        state = self.decoder.state
        rows = query[:, :, state.block.start : state.block.end]
        equal = rows.new_full((len(rows), rows.shape[2]), 1 / rows.shape[2], dtype=torch.float32)
        mass = attend_and_weigh(rows, key, value, self.allowed, scale, equal)[1][0, : state.prompt]
        count = min(self.decoder.sinks, max(1, state.prompt // 4))  # all positions of a prompt would agree
        self.decoder.found.setdefault(layer, []).append(set(mass.topk(count).indices.tolist()))
        return super().attend(layer, query, key, value, scale)


class Watching(Caching):
    """Vanilla decoding that looks at attention at the first step of each block."""

    def __init__(self, model: Any, state: Any, sinks: int, found: dict[int, list[set[int]]]) -> None:
        super().__init__(model, state)
        self.sinks, self.found = sinks, found

    def first(self) -> Answers:
        return self.everything(Masses(self))

    def next(self) -> Answers:
        return self.everything(Full(self.cache, self.allowed))


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Decode some real prompts by vanilla decoding and look at confidences and sinks; proposes a FocusDLLM."""

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
    """Of the prompts."""
    resume: bool = True
    """Go on with what an interrupted probe of this folder measured."""

    def __call__(self, loaded: Loaded, out: Path) -> FocusDLLM:
        """Measure, with progress and a log in ``out/probe.jsonl``, and propose a method."""
        masked_lm.check(loaded.model)
        with Progress(*Progress.get_default_columns()[:-1], TimeRemainingColumn(), transient=True) as bar:
            return fit(
                loaded.model,
                self.inputs(loaded),
                decoding=Decoding(gen_length=self.gen_length, block_length=self.block_length, stop_at_eos=False),
                sinks=self.sinks,
                log=out / "probe.jsonl",
                resume=self.resume,
                track=lambda steps, total: bar.track(steps, total, description="probing"),
            )

    def inputs(self, loaded: Loaded) -> list[Int[Tensor, " n"]]:
        """The prompts, a function of `seed`: real text, or random tokens for a model without a tokenizer."""
        generator = torch.Generator().manual_seed(self.seed)
        if loaded.processor is None or not callable(loaded.processor):
            size = loaded.model.config.mask_token_id
            return [torch.randint(0, size, (self.length,), generator=generator) for _ in range(self.prompts)]
        return [texts.window(loaded.processor, "python-docs", self.length, generator) for _ in range(self.prompts)]


def fit(
    model: Any,
    data: Sequence[Int[Tensor, " n"]],
    *,
    decoding: Decoding,
    sinks: int,
    log: Path,
    resume: bool = True,
    track: Callable[[Iterable, int], Iterable] = lambda steps, total: steps,
) -> FocusDLLM:
    """Probe `model` by vanilla decoding of `data` and propose a method.

    Args:
        model: as for `FocusDLLM.apply`.
        data: prompts.
        decoding: lengths of responses and blocks.
        sinks: how many to compare between layers.
        log: JSON lines of what was measured; an interrupted probe goes on from it.
        resume: start from `log` where it exists, rather than anew.
        track: wraps the steps to show progress, given their number.

    Raises:
        BadFileError: `log` is damaged.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if not resume:
        log.unlink(missing_ok=True)
    done = _read(log)
    for number, prompt in track(list(enumerate(data)), len(data)):
        key = [number, *prompt[:8].tolist(), len(prompt), decoding.gen_length, decoding.block_length, sinks]
        if any(record["key"] == key for record in done):
            continue
        with FocusDLLM().apply(model):  # plans need its attention function
            record = {"key": key, **_measure(model, prompt, decoding, sinks)}
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        done.append(record)
    return propose(done, sinks)


def _measure(model: Any, prompt: Int[Tensor, " n"], decoding: Decoding, sinks: int) -> dict[str, Any]:
    """Coverage by number of focus positions, and mean overlap of each layer's sinks with those of deeper layers."""
    found: dict[int, list[set[int]]] = {}
    output = generate(
        model,
        prompt[None].to(model.device),
        decoding=decoding,
        make=lambda model, state: Watching(model, state, sinks, found),
        trace=True,
    )
    covered = {str(k): coverage(output.stats.trace, k) for k in COUNTS}
    return {"coverage": covered, "overlap": [_overlap(found, layer) for layer in range(len(found) - 1)]}


def _overlap(found: dict[int, list[set[int]]], layer: int) -> float:
    """Mean Jaccard index of a layer's sinks and those of each deeper layer, over blocks."""
    deeper = range(layer + 1, len(found))
    shares = [_jaccard(a, b) for other in deeper for a, b in zip(found[layer], found[other], strict=True)]
    return sum(shares) / len(shares)


def _jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other)


def propose(records: Sequence[dict[str, Any]], sinks: int) -> FocusDLLM:
    """The fewest focus positions that covered `COVERED`; the first layer whose sinks agree with the deeper ones."""
    mean = {k: sum(r["coverage"][str(k)] for r in records) / len(records) for k in COUNTS}
    count = next((k for k in COUNTS if mean[k] >= COVERED), COUNTS[-1])
    layers = len(records[0]["overlap"]) + 1
    overlap = [sum(r["overlap"][i] for r in records) / len(records) for i in range(max(1, layers // 2))]
    last = next(i for i, share in enumerate(overlap) if share >= AGREED * max(overlap))
    return FocusDLLM(last_dense=last, min_focus=count, sinks=sinks)


def _read(log: Path) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    whole, _, _ = log.read_bytes().rpartition(b"\n")  # a killed probe may leave half a line
    log.write_bytes(whole + b"\n" if whole else b"")
    done = []
    for number, line in enumerate(whole.decode(errors="replace").splitlines(), 1):
        try:
            record = json.loads(line)
            done.append({"key": list(record["key"]), "coverage": record["coverage"], "overlap": record["overlap"]})
        except (ValueError, KeyError, TypeError) as error:
            raise BadFileError(f"{log}:{number} is damaged; delete it, or start again with --no-resume") from error
    return done
