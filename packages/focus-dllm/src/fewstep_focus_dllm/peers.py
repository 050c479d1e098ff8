"""Peers in the same harness: vanilla as published, Fast-dLLM's caches, and eviction like Sparse-dLLM's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch

from .decoder import Caching, Decoder, Prefix
from .eviction import Evicting
from .method import DecodingMethod
from .published import Published
from .state import State
from .vanilla import AllRows


@dataclass(frozen=True, kw_only=True)
class Vanilla(DecodingMethod):
    """LLaDA's published decoding (arXiv:2502.09992): everything at each step, with logits and confidence of all rows.

    The dense arm of a benchmark computes the same tokens with logits of the block's rows only, which is cheaper.
    """

    name: ClassVar[str] = "vanilla"
    cached: ClassVar[bool] = False

    softmax: Literal["float64", "float32"] = "float64"
    """In which the probabilities of all rows are computed; the published code has float64."""

    def identity(self) -> Self:
        """It is the same decoding."""
        return self

    def decoder(self, model: Any, state: State) -> Decoder:
        return AllRows(model, state, getattr(torch, self.softmax))


@dataclass(frozen=True, kw_only=True)
class FastDLLM(DecodingMethod):
    """Fast-dLLM's block-wise cache (arXiv:2505.22618), tuned: rotated keys, rows written in place, no bias matrices.

    Parallel decoding is the ``threshold`` of every method's decoding options.
    """

    name: ClassVar[str] = "fast-dllm"

    cache: Literal["dual", "prefix"] = "dual"
    """``dual``: later steps compute the block; ``prefix``: the block and everything behind it."""

    def decoder(self, model: Any, state: State) -> Decoder:
        return (Caching if self.cache == "dual" else Prefix)(model, state)


@dataclass(frozen=True, kw_only=True)
class FastDLLMPublished(DecodingMethod):
    """Fast-dLLM's cache (arXiv:2505.22618) as its code has it: un-rotated keys, all rotated at each step."""

    name: ClassVar[str] = "fast-dllm-published"

    cache: Literal["dual", "prefix"] = "dual"
    """As for ``fast-dllm``."""

    def decoder(self, model: Any, state: State) -> Decoder:
        return Published(model, state, suffix=self.cache == "prefix")


@dataclass(frozen=True, kw_only=True)
class SparseDLLM(DecodingMethod):
    """Dynamic eviction like Sparse-dLLM's (arXiv:2508.02558): a block reads a share of the tokens outside it.

    Raises:
        ValueError: the share is not in (0, 1].
    """

    name: ClassVar[str] = "sparse-dllm"

    keep: float = 0.5
    """Share of prompt and suffix that is kept at the second step of a block."""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep}: a share of the tokens must be in (0, 1]")

    def decoder(self, model: Any, state: State) -> Decoder:
        return Evicting(model, state, self.keep)
