"""Block-wise decoding of masked diffusion language models, whatever computes logits: options, state, statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from fewstep.errors import check_least
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .selection import Remasking, choose, propose, top_confidence


class Block(NamedTuple):
    """A decoding block: positions ``start .. end - 1`` of the whole sequence, and its number of steps."""

    start: int
    end: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Semi-autoregressive decoding of a masked diffusion language model: blocks from left to right.

    Raises:
        ValueError: a field is out of range, or two do not fit each other.
    """

    gen_length: int = 256
    """Tokens of the response (G)."""
    block_length: int = 32
    """Tokens of a decoding block (Lb); the last block is shorter where it does not divide `gen_length`."""
    steps: int | None = None
    """Denoising steps for the whole response, spread over the blocks; default: one for each token."""
    threshold: float | None = None
    """Unmask every token that is at least this probable (Fast-dLLM's parallel decoding, tau = 0.9), and always the most
    probable one, instead of a number fixed by `steps`."""
    temperature: float = 0.0
    """0 takes the likeliest token; above it, Gumbel noise in float64 samples."""
    remasking: Remasking = "low_confidence"
    """Measure of confidence: probability of the token, its margin over the second, negative entropy, or chance."""
    eos_bias: float = 0.0
    """Added to the logits of end-of-sequence tokens; negative for longer answers."""
    stop_at_eos: bool = True
    """Stop a sequence when an end-of-sequence token stands and nothing before it is masked, and drop what follows it.
    False decodes and keeps everything, as measurements that compare all positions need it."""
    cfg_scale: float = 0.0
    """Classifier-free guidance, as LLaDA has it: above 0 each pass runs a second time with all given tokens masked, and
    logits move away from those of that pass. Twice the time and twice the cache; 0 is off."""
    seed: int = 0
    """Seed of sampling and of random remasking."""

    def __post_init__(self) -> None:
        check_least(self, gen_length=1, block_length=1, steps=1)
        for name in ("temperature", "cfg_scale"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} must be 0 or more, found {value}")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is a probability in (0, 1], found {self.threshold}")
        if self.threshold is not None and self.remasking != "low_confidence":
            raise ValueError(f"threshold compares probabilities, which remasking={self.remasking!r} does not give")

    def blocks(self, prompt: int) -> list[Block]:
        """The blocks of a response behind `prompt` tokens; every block has at least one step."""
        steps, blocks = self.steps or self.gen_length, []
        for start in range(0, self.gen_length, self.block_length):
            end = min(start + self.block_length, self.gen_length)
            share = steps * end // self.gen_length - steps * start // self.gen_length
            blocks.append(Block(prompt + start, prompt + end, max(1, share)))
        return blocks


def unmask_count(masked: int, steps: int, step: int) -> int:
    """Tokens that step `step` of `steps` unmasks of a block with `masked` masks: the first ones take the remainder.

    Steps beyond the last one, which only a prediction that missed needs, unmask one each.
    """
    return masked // steps + (step < masked % steps) if step < steps else 1


class BlockLogits(NamedTuple):
    """Logits about some positions of the current block of each sequence."""

    positions: Int[Tensor, "b c"]
    """Position in the sequence that each row is about."""
    valid: Bool[Tensor, "b c"]
    """False for rows that only pad: their position may not be unmasked."""
    logits: Float[Tensor, "b c v"]


class Trace(NamedTuple):
    """Confidences and masks of one step of one block."""

    confidence: Float[Tensor, "b l"]
    """Latest known confidences after the step's logits."""
    masked: Bool[Tensor, "b l"]
    """Masked positions before the step unmasked any."""
    unmasked: Bool[Tensor, "b l"]
    """Positions that it unmasked."""


@dataclass(kw_only=True)
class Stats:
    """Counts and times of one call of `generate`."""

    refreshes: int = 0
    """Forward passes over everything (each step of vanilla decoding is one)."""
    partial_rows: list[int] = field(default_factory=list)
    """Positions computed at each block border that had no full pass."""
    rows: list[int] = field(default_factory=list)
    """Positions computed at each cached step, the largest of the batch."""
    read: list[int | float] = field(default_factory=list)
    """Keys that each row read at each cached step, mean over layers."""
    kept: list[float] = field(default_factory=list)
    """Prompt tokens that sparse layers read at each cached step, mean over layers."""
    predicted: int = 0
    """Tokens unmasked at cached steps that were in focus: predicted by the confidences of the step before."""
    unmasked: int = 0
    """Tokens unmasked at cached steps."""
    refresh_seconds: list[float] = field(default_factory=list)
    """Seconds of each first step of a block (and of each step of vanilla decoding)."""
    step_seconds: list[float] = field(default_factory=list)
    """Seconds of each cached step."""
    trace: list[Trace] = field(default_factory=list)
    """All steps; empty unless a trace was asked for."""

    @property
    def steps(self) -> int:
        """Steps of all blocks until now."""
        return len(self.refresh_seconds) + len(self.step_seconds)

    def add_passes(self, other: Stats) -> None:
        """Count the forward passes of `other` too: a second pass of the same step."""
        self.refreshes += other.refreshes
        for name in ("partial_rows", "rows", "read", "kept"):
            getattr(self, name).extend(getattr(other, name))

    @property
    def coverage(self) -> float:
        """Share of `unmasked` that was `predicted`; NaN where nothing was."""
        return self.predicted / self.unmasked if self.unmasked else float("nan")


class State:
    """Tokens ``[B, N]`` (left-padded prompt and response), and confidences of the block that is being decoded."""

    def __init__(
        self,
        tokens: Int[Tensor, "b n"],
        pad: Int[Tensor, " b"],
        prompt: int,
        decoding: DecodingOptions,
        *,
        mask_token: int,
        eos: tuple[int, ...],
    ):
        self.tokens, self.pad, self.prompt, self.decoding = tokens, pad, prompt, decoding
        self.length = tokens.shape[1]
        self.mask_token, self.eos = mask_token, torch.tensor(eos, device=tokens.device)
        self.generator = torch.Generator().manual_seed(decoding.seed)
        self.stopped = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        self.hidden: Bool[Tensor, "b n"] | None = None
        self.stats = Stats()

    def inputs(self) -> Int[Tensor, "b n"]:
        """Tokens as the model reads them: masks in place of those that are hidden from it."""
        return self.tokens if self.hidden is None else self.tokens.masked_fill(self.hidden, self.mask_token)

    def open(self, block: Block) -> None:
        """Begin a block: nothing is known of it, so nothing is in focus."""
        self.block, self.step = block, 0
        self.initial = self.masked().sum(1)
        unknown = torch.full((len(self.tokens), block.end - block.start), -torch.inf, dtype=torch.float64)
        self.confidence = unknown.to(self.tokens.device)

    def masked(self) -> Bool[Tensor, "b l"]:
        """Masks of the current block, none in sequences that have stopped."""
        inside = self.tokens[:, self.block.start : self.block.end]
        return (inside == self.mask_token) & ~self.stopped[:, None]

    def counts(self) -> Int[Tensor, " b"]:
        """Tokens that each sequence unmasks at this step (1 with a threshold)."""
        left, counts = self.masked().sum(1).tolist(), [1] * len(self.tokens)
        if self.decoding.threshold is None:
            counts = [unmask_count(int(m), self.block.steps, self.step) for m in self.initial.tolist()]
        return torch.tensor([min(n, m) for n, m in zip(counts, left, strict=True)], device=self.tokens.device)

    def unmask(self, about: BlockLogits) -> Bool[Tensor, "b l"]:
        """Unmask the most confident candidates of this step; returns the positions of the block that were unmasked."""
        start, end = self.block.start, self.block.end
        width, options = end - start, self.decoding
        logits = about.logits.clone()
        logits[..., self.mask_token] = -torch.inf  # else a model that prefers the mask never ends
        if options.eos_bias:
            logits[..., self.eos] += options.eos_bias
        token, fresh = propose(
            logits, temperature=options.temperature, remasking=options.remasking, generator=self.generator
        )
        chosen = choose(fresh, about.valid, self.counts(), options.threshold)
        # one more column takes what is not valid or not chosen, and is cut off
        offset = torch.where(about.valid, about.positions - start, width)
        wide = torch.cat([self.confidence, self.confidence[:, :1]], 1).scatter(1, offset, fresh)
        self.confidence = wide[:, :width]
        place = torch.where(chosen, offset, width)
        old = self.tokens[:, start:end]
        self.tokens[:, start:end] = torch.cat([old, old[:, :1]], 1).scatter(1, place, token)[:, :width]
        self.step += 1
        return torch.zeros_like(wide, dtype=torch.bool).scatter(1, place, True)[:, :width]

    def stop(self) -> None:
        """Mark sequences that have an end token with nothing masked before it; end tokens replace what follows it."""
        response = self.tokens[:, self.prompt :]  # a view: the prompt stays as it is, masks in it included
        ends = torch.isin(response, self.eos)
        ended = ends.long().cumsum(1) > 0
        before = ((response == self.mask_token) & ~ended).any(1)
        self.stopped |= ended.any(1) & ~before
        behind = (ends.long().cumsum(1) - ends.long() > 0) & self.stopped[:, None]
        if len(self.eos):
            response.masked_fill_(behind, int(self.eos[0]))

    def end(self) -> int:
        """Position behind the last token of the longest sequence: where all have stopped, behind its end token."""
        if not bool(self.stopped.all()):
            return self.length
        first = torch.isin(self.tokens[:, self.prompt :], self.eos).long().argmax(1)
        return self.prompt + int(first.max()) + 1


def correlation(trace: Sequence[Trace]) -> float:
    """Pearson correlation of confidences at adjacent steps of a block, over positions masked at both; mean over steps.

    Steps with fewer than three such positions, or without variance, tell nothing; NaN where all are such.
    """
    values = []
    for before, after in _adjacent(trace):
        for row, masked in enumerate(after.masked):
            pair = torch.stack([before.confidence[row, masked], after.confidence[row, masked]])
            if masked.sum() >= 3 and (pair.std(1) > 0).all():
                values.append(torch.corrcoef(pair)[0, 1].item())
    return sum(values) / len(values) if values else float("nan")


def coverage(trace: Sequence[Trace], count: int) -> float:
    """Share of unmasked tokens that were among the `count` most confident masks of the step before (coverage@k)."""
    hits = total = 0
    for before, after in _adjacent(trace):
        counts = torch.full((len(after.masked),), count, device=after.masked.device)
        best = top_confidence(before.confidence, after.masked, counts)
        hits += int((after.unmasked & best).sum())
        total += int(after.unmasked.sum())
    return hits / total if total else float("nan")


def _adjacent(trace: Sequence[Trace]) -> Iterator[tuple[Trace, Trace]]:
    """Adjacent steps of one block, in which masks only become fewer."""
    for before, after in pairwise(trace):
        if before.masked.shape == after.masked.shape and not (after.masked & ~(before.masked & ~before.unmasked)).any():
            yield before, after
