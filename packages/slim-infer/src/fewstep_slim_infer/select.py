"""Block selection of SlimInfer (arXiv:2508.06447): budgets, relevance of blocks, and presets of known models."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from fewstep.kernels.unit_score import unit_score
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Budget = int | float
"""Tokens (int), or a share of the prompt (float in (0, 1])."""
BlockScore = Literal["dot", "abs_dot", "unit_softmax"]
"""Function ``f`` in the relevance of a block, see `fewstep.kernels.unit_score.unit_score`."""


def spread(keep: Budget | tuple[Budget, ...], segments: int) -> tuple[Budget, ...]:
    """One budget for each segment: a single one is halved from entry to entry; 1.0 keeps everything everywhere."""
    if isinstance(keep, tuple):
        return keep
    if keep == 1.0 and isinstance(keep, float):
        return (keep,) * segments
    return tuple(keep >> s if isinstance(keep, int) else keep / 2**s for s in range(segments))


def blocks_kept(keep: Budget, tokens: int, block: int, forced: int) -> int:
    """Block budget of a segment for a prompt of `tokens`; never fewer than the forced blocks and one that is chosen."""
    budget = int(keep * tokens) if isinstance(keep, float) else keep
    if budget >= tokens:
        return -(-tokens // block)
    return max(budget // block, forced + 1)


def block_scores(
    query: Float[Tensor, "h d"],
    keys: Float[Tensor, "g t d"],
    numbers: Int[Tensor, " n"],
    *,
    block: int,
    unit: int,
    score: BlockScore,
    carry: int,
) -> Float[Tensor, " n"]:
    """Relevance of each block: its best unit's, or that of one of the `carry` units right before it.

        k_u = mean of the keys of unit u          r(j) = max_{u in block j} 1/h sum_i f(<q_i, k_{g(i), u}>)

    The units before the block are ours, the paper has ``carry = 0``: a hit announces the text behind it, which may be
    in the next block.

    Args:
        query: local query, mean over the last tokens of the prompt.
        keys: keys of the tokens that are left, block after block; only the last block may be ragged.
        numbers: block numbers in the prompt, ascending; a block carries on to its successor in the prompt alone.
        block: tokens in a block.
        unit: tokens in a unit.
        score: ``f``.
        carry: units, at most those of a block.
    """
    if carry == 0:
        return unit_score(query, keys, block=block, unit=unit, score=score)
    units = unit_score(query, keys, block=unit, unit=unit, score=score)
    per_block = block // unit
    units = nn.functional.pad(units, (0, -units.numel() % per_block), value=-torch.inf).unflatten(0, (-1, per_block))
    before = units[:-1, -carry:].amax(1).masked_fill(numbers[1:] != numbers[:-1] + 1, -torch.inf)
    return torch.maximum(units.amax(1), nn.functional.pad(before, (1, 0), value=-torch.inf))


def top_blocks(scores: Float[Tensor, " n"], budget: int, forced: Bool[Tensor, " n"]) -> Int[Tensor, " k"]:
    """The `budget` best blocks in ascending order, the forced ones first of all; every block if there are no more.

    Ties go to the lower index, so that devices agree.
    """
    if scores.numel() <= budget:
        return torch.arange(scores.numel(), device=scores.device)
    ranked = torch.sort(scores.masked_fill(forced, torch.inf), descending=True, stable=True).indices
    return ranked[:budget].sort().values


def forced_blocks(tokens: int, block: int, *, sinks: int, tails: int, window: int) -> Bool[Tensor, " n"]:
    """The first `sinks` and last `tails` blocks of a sequence, and those that hold its last `window` tokens."""
    index = torch.arange(-(-tokens // block))
    return (index < sinks) | (index >= min(index.numel() - tails, (tokens - window) // block))


def surviving_blocks(
    settings: Any,
    query: Float[Tensor, "h t d"],
    keys: Float[Tensor, "g t d"],
    number: Int[Tensor, " t"],
    prompt: int,
    segment: int,
) -> Int[Tensor, " k"]:
    """Blocks of one row that slim segment number `segment` keeps, as indices into its current sequence.

    Args:
        settings: a `SlimInfer` whose every field is filled in.
        query: queries of the layer before the segment, which end with the prompt's last token.
        keys: keys of the same layer.
        number: index of each token in the prompt.
        prompt: tokens of the whole prompt.
        segment: counts from 0.

    Raises:
        ValueError: ``settings.query_span`` holds no token of this prompt.
    """
    block, length = settings.block, number.numel()
    sinks, tails, window = settings.sink_blocks, settings.tail_blocks, settings.window
    forced = forced_blocks(length, block, sinks=sinks, tails=tails, window=window)
    asked: slice | Tensor = slice(-window, None)
    if settings.query_span is not None:
        start, stop = (n + prompt if n < 0 else n for n in settings.query_span)
        asked = ((number >= start) & (number < stop)).nonzero().flatten()
        if not asked.numel():
            raise ValueError(f"query_span={settings.query_span} holds no token of a prompt of {prompt} tokens")
        forced[asked.cpu() // block] = True
    budget = blocks_kept(settings.keep[segment], prompt, block, int(forced.sum()))
    if forced.numel() <= budget:
        return torch.arange(forced.numel(), device=number.device)
    rule = {"block": block, "unit": settings.unit, "score": settings.score, "carry": settings.carry}
    scores = block_scores(query[:, asked].float().mean(1), keys, number[::block] // block, **rule)
    return top_blocks(scores, budget, forced.to(scores.device))


def rows_of(blocks: Int[Tensor, " k"], block: int, tokens: int) -> Int[Tensor, " t"]:
    """Token rows of `blocks` in a sequence of `tokens`, whose last block may be ragged."""
    rows = (blocks[:, None] * block + torch.arange(block, device=blocks.device)).flatten()
    return rows[rows < tokens]


def unit_means(keys: Float[Tensor, "g n d"], unit: int) -> Float[Tensor, "g m d"]:
    """Mean key of every unit, in float32; `n` is a multiple of `unit`."""
    return keys.float().unflatten(1, (-1, unit)).mean(2)


@dataclass(frozen=True)
class Candidates:
    """Full blocks of one row that decoding chooses from."""

    numbers: list[int]
    """Block numbers in the prompt, ascending."""
    units: Float[Tensor, "g m d"]
    """Mean key of every unit of these blocks, in order."""

    def choose(self, query: Float[Tensor, "h d"], budget: int, settings: Any, tails: int) -> list[int]:
        """The `budget` best blocks for a local query, ascending; first of all the sinks and the last `tails`."""
        count = len(self.numbers)
        if count <= budget:
            return self.numbers
        numbers, per_block = torch.tensor(self.numbers, device=query.device), self.units.shape[1] // count
        rule = {"block": per_block, "unit": 1, "score": settings.score, "carry": settings.carry}
        scores = block_scores(query, self.units, numbers, **rule)
        place = torch.arange(count, device=scores.device)
        forced = (place < settings.sink_blocks) | (place >= count - tails)
        return [self.numbers[i] for i in top_blocks(scores, budget, forced).tolist()]

    def insert(self, number: int, units: Float[Tensor, "g m d"]) -> Candidates:
        """These candidates and one more block, given the mean keys of its units."""
        place = sum(own < number for own in self.numbers)
        before, after = self.units.tensor_split([place * units.shape[1]], dim=1)
        numbers = [*self.numbers[:place], number, *self.numbers[place:]]
        return Candidates(numbers, torch.cat([before, units, after], dim=1))


PresetName = Literal["default", "fast"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Values for the fields of `SlimInfer` that are None."""

    entry: tuple[int, ...]
    keep: tuple[Budget, ...]
    block: int = 64
    score: BlockScore = "dot"
    window: int = 4
    carry: int = 0


PRESETS: dict[tuple[str, int, int], dict[PresetName, Preset]] = {
    # (model_type, layers, width): Llama-3.1-8B-Instruct and Qwen2.5-7B-Instruct are the paper's, arXiv:2508.06447
    ("llama", 32, 4096): {"default": Preset(entry=(10, 20, 30), keep=(8192, 4096, 2048))},
    ("qwen2", 28, 3584): {"default": Preset(entry=(9, 18, 26), keep=(12288, 6144, 4096))},
    # SmolLM2-135M-Instruct is ours: its retrieval starts at layer 14. "default" was chosen on the tuning half of
    # planted-facts; "fast" on one wording over one document, and it loses 1 of 16 answers of that half
    ("llama", 30, 576): {
        "default": Preset(
            entry=(15, 21, 28), keep=(1 / 2, 1 / 4, 1 / 8), block=16, score="unit_softmax", window=8, carry=1
        ),
        "fast": Preset(
            entry=(15, 21, 28), keep=(1 / 4, 1 / 8, 1 / 16), block=16, score="unit_softmax", window=1, carry=1
        ),
    },
}


def preset_for(config: Any, name: PresetName = "default", *, warn: bool = True) -> Preset:
    """The preset of a model by its transformers configuration; warns when it is only a scaled guess.

    Raises:
        ValueError: the model has no preset of this name.
    """
    layers = config.num_hidden_layers
    known = PRESETS.get((config.model_type, layers, config.hidden_size), {})
    if name in known:
        return known[name]
    if name != "default":
        raise ValueError(
            f"preset={name!r}: there is none for {config.model_type} with {layers} layers and width "
            f"{config.hidden_size}; take preset='default', or pass entry= and keep="
        )
    entry = tuple(sorted({min(max(round(share * layers / 32), 1), layers - 1) for share in (10, 20, 30)}))
    if warn:
        warnings.warn(
            f"no SlimInfer preset for {config.model_type} with {layers} layers: entry layers {entry} are scaled from "
            "Llama-3.1-8B, and retrieval layers differ between models; find them with `fewstep fit slim-infer`, or "
            "pass entry= and keep=",
            stacklevel=4,
        )
    return Preset(entry=entry, keep=tuple(8192 >> i for i in range(len(entry))))
