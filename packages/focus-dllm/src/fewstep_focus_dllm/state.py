"""The sequences while they are decoded: tokens, confidences, and what of the current block is still masked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .decoding import Block, Decoding, unmask_count
from .unmask import choose, propose


class Answers(NamedTuple):
    """Logits for some positions of each sequence."""

    positions: Int[Tensor, "b c"]
    """Position that each row of logits is about."""
    valid: Bool[Tensor, "b c"]
    """False for rows that only pad: their position may not be unmasked."""
    logits: Float[Tensor, "b c v"]


class Trace(NamedTuple):
    """One step of one block."""

    confidence: Float[Tensor, "b l"]
    """Latest known confidences after the step's logits."""
    masked: Bool[Tensor, "b l"]
    """What was masked before it unmasked anything."""
    unmasked: Bool[Tensor, "b l"]
    """What it unmasked."""


@dataclass(kw_only=True)
class Stats:
    """What a call of `generate` did and took."""

    refreshes: int = 0
    """Forward passes over everything (each step of vanilla decoding is one)."""
    partial_rows: list[int] = field(default_factory=list)
    """Positions computed at each block border that had no full pass."""
    rows: list[int] = field(default_factory=list)
    """Positions computed at each cached step, the largest of the batch."""
    kept: list[float] = field(default_factory=list)
    """Prompt tokens that sparse layers read at each cached step, mean over layers and batch."""
    predicted: int = 0
    """Tokens unmasked at cached steps that were in focus: what confidences of the step before had predicted."""
    unmasked: int = 0
    """Tokens unmasked at cached steps."""
    refresh_seconds: list[float] = field(default_factory=list)
    """Of each first step of a block (and of each step of vanilla decoding)."""
    step_seconds: list[float] = field(default_factory=list)
    """Of each cached step."""
    read: list[float] = field(default_factory=list)
    """Keys that each row read at each cached step, mean over layers."""
    trace: list[Trace] = field(default_factory=list)
    """What happened at each step; empty unless a trace was asked for."""

    @property
    def coverage(self) -> float:
        """Share of `unmasked` that was `predicted`; NaN where nothing was."""
        return self.predicted / self.unmasked if self.unmasked else float("nan")


class State:
    """Tokens ``[B, N]`` = left-padded prompt and response, and what is known of the block that is being decoded."""

    def __init__(
        self,
        tokens: Int[Tensor, "b n"],
        pad: Int[Tensor, " b"],
        prompt: int,
        decoding: Decoding,
        *,
        mask_token: int,
        eos: tuple[int, ...],
    ):
        self.tokens, self.pad, self.prompt, self.decoding = tokens, pad, prompt, decoding
        self.mask_token, self.eos = mask_token, torch.tensor(eos, device=tokens.device)
        self.generator = torch.Generator().manual_seed(decoding.seed)
        self.stopped = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        self.stats = Stats()

    @property
    def length(self) -> int:
        """Positions of prompt and response together."""
        return self.tokens.shape[1]

    def open(self, block: Block) -> None:
        """Begin a block."""
        self.block, self.step = block, 0
        self.initial = self.masked().sum(1)
        # before the first step of a block nothing is known, so nothing is in focus
        self.confidence = torch.full((len(self.tokens), block.end - block.start), -torch.inf, dtype=torch.float64)
        self.confidence = self.confidence.to(self.tokens.device)

    def masked(self) -> Bool[Tensor, "b l"]:
        """Masks of the current block, none in sequences that have stopped."""
        inside = self.tokens[:, self.block.start : self.block.end]
        return (inside == self.mask_token) & ~self.stopped[:, None]

    def counts(self) -> Int[Tensor, " b"]:
        """Tokens that each sequence unmasks at this step (1 with a threshold)."""
        left = self.masked().sum(1).tolist()
        if self.decoding.threshold is not None:
            return torch.tensor([min(1, n) for n in left], device=self.tokens.device)
        wanted = [unmask_count(int(m), self.block.steps, self.step) for m in self.initial.tolist()]
        return torch.tensor([min(n, m) for n, m in zip(wanted, left, strict=True)], device=self.tokens.device)

    def take(self, answers: Answers) -> Bool[Tensor, "b l"]:
        """Unmask the surest answers of this step; returns which positions of the block were unmasked."""
        start, width = self.block.start, self.block.end - self.block.start
        logits = answers.logits.clone()
        logits[..., self.mask_token] = -torch.inf  # else a model that prefers the mask never ends
        if self.decoding.eos_bias:
            logits[..., self.eos] += self.decoding.eos_bias
        token, sure = propose(
            logits,
            temperature=self.decoding.temperature,
            remasking=self.decoding.remasking,
            generator=self.generator,
        )
        chosen = choose(sure, answers.valid, self.counts(), self.decoding.threshold)
        # one more column takes what is not valid or not chosen, and is cut off
        offset = torch.where(answers.valid, answers.positions - start, width)
        wide = torch.cat([self.confidence, self.confidence[:, :1]], 1).scatter(1, offset, sure)
        self.confidence = wide[:, :width]
        place = torch.where(chosen, offset, width)
        old = self.tokens[:, start : self.block.end]
        self.tokens[:, start : self.block.end] = torch.cat([old, old[:, :1]], 1).scatter(1, place, token)[:, :width]
        self.step += 1
        return torch.zeros_like(wide, dtype=torch.bool).scatter(1, place, True)[:, :width]

    def stop(self) -> None:
        """Mark sequences that have an end token with nothing masked before it."""
        response = self.tokens[:, self.prompt :]
        ended = torch.isin(response, self.eos).long().cumsum(1) > 0
        before = ((response == self.mask_token) & ~ended).any(1)
        self.stopped |= ended.any(1) & ~before
