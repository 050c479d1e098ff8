"""Baselines in the same harness: vanilla as published, Fast-dLLM's caches, and eviction like Sparse-dLLM's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .decoders import Allowed, AttentionPlan, CachedAttention, CachedDecoder, Keys, Queries, Rows, TokenDecoder, attend
from .decoding import BlockLogits, State
from .generation import DecodingMethod

Angles = tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]
"""Cosines and sines of rotary position embeddings."""
POOL = 3
"""Neighbours whose largest score a token takes (max pooling of Sparse-dLLM's published code)."""


@dataclass(frozen=True, kw_only=True)
class Vanilla(DecodingMethod):
    """LLaDA's published decoding (arXiv:2502.09992): everything at each step, with logits and confidence of all rows.

    The dense arm of a benchmark computes the same tokens with logits of the block's rows only, which is cheaper.
    """

    name: ClassVar[str] = "vanilla"
    cached: ClassVar[bool] = False

    softmax: Literal["float64", "float32"] = "float64"
    """Precision of the probabilities of all rows; the published code has float64."""

    def identity(self) -> Self:
        """The same decoding: it changes the cost only."""
        return self

    def decoder(self, model: Any, state: State) -> TokenDecoder:
        return AllRowsDecoder(model, state, getattr(torch, self.softmax))


@dataclass(frozen=True, kw_only=True)
class FastDLLM(DecodingMethod):
    """Fast-dLLM's block-wise cache (arXiv:2505.22618), tuned: rotated keys, rows written in place, no bias matrices.

    Parallel decoding is the ``threshold`` of every method's decoding options.
    """

    name: ClassVar[str] = "fast-dllm"

    cache: Literal["dual", "prefix"] = "dual"
    """``dual``: later steps compute the block; ``prefix``: the block and everything behind it."""

    def decoder(self, model: Any, state: State) -> TokenDecoder:
        return CachedDecoder(model, state, suffix=self.cache == "prefix")


@dataclass(frozen=True, kw_only=True)
class FastDLLMPublished(DecodingMethod):
    """Fast-dLLM's cache (arXiv:2505.22618) as its code has it: un-rotated keys, all rotated at each step."""

    name: ClassVar[str] = "fast-dllm-published"

    cache: Literal["dual", "prefix"] = "dual"
    """As for ``fast-dllm``."""

    def decoder(self, model: Any, state: State) -> TokenDecoder:
        return UnrotatedDecoder(model, state, suffix=self.cache == "prefix")


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

    def decoder(self, model: Any, state: State) -> TokenDecoder:
        return EvictionDecoder(model, state, self.keep)


class AllRowsDecoder(TokenDecoder):
    """Decoder of `Vanilla`: the tokens of `TokenDecoder` at the published cost, a softmax over all rows."""

    def __init__(self, model: Any, state: State, dtype: torch.dtype) -> None:
        super().__init__(model, state)
        self.dtype = dtype  # of the softmax

    def full_pass(self, plan: AttentionPlan | None) -> BlockLogits:
        state, block = self.state, self.state.block
        every = self.positions(0, state.length)
        logits = self.model.lm_head(self.hidden(state.inputs(), every, plan))
        for row in logits:  # the published code takes confidences from it; one sequence at a time bounds the memory
            row.to(self.dtype).softmax(-1).amax(-1)
        state.stats.refreshes += 1
        rows = slice(block.start - self.shift, block.end - self.shift)
        return BlockLogits(every[:, block.start : block.end], state.masked(), logits[:, rows])


class UnrotatedDecoder(CachedDecoder):
    """Decoder of `FastDLLMPublished`: the tokens of `CachedDecoder`, rotating all keys in each layer and step."""

    def __init__(self, model: Any, state: State, *, suffix: bool) -> None:
        super().__init__(model, state, suffix=suffix)
        every = torch.arange(state.length, device=state.tokens.device) - state.pad[:, None]
        like = torch.empty(1, device=state.tokens.device, dtype=model.dtype)
        self.angles: Angles = model.model.rotary_emb(like, every.clamp(min=0))

    def hidden(self, tokens: Rows, positions: Rows, plan: AttentionPlan | None) -> Float[Tensor, "b r d"]:
        # at position 0 the model's own rotation is the identity, so that plans see keys as they are stored
        zeros = torch.zeros_like(positions)
        return self.model.model(input_ids=tokens, position_ids=zeros, use_cache=False, plan=plan).last_hidden_state

    def plan(self, rows: Rows | None = None) -> AttentionPlan:
        """Keys are written as they come; then the queries of the rows and the keys of all positions are rotated."""

        def attention(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            self.cache.write(layer, rows, key, value)
            keys, values = self.cache.read(layer)
            cos, sin = self.angles
            if rows is not None:
                index = rows[..., None].expand(-1, -1, query.shape[-1])
                cos, sin = (angle.expand(len(rows), -1, -1).gather(1, index) for angle in self.angles)
            return attend(rotated(query, (cos, sin)), rotated(keys, self.angles), values, self.allowed, scale)

        return attention


def rotated(heads: Float[Tensor, "b h n d"], angles: Angles) -> Float[Tensor, "b h n d"]:
    """Rotary position embedding in the half-split layout of Llama and Qwen2."""
    cos, sin = (angle[:, None] for angle in angles)
    left, right = heads.chunk(2, -1)
    return heads * cos + torch.cat([-right, left], -1) * sin


class EvictionDecoder(CachedDecoder):
    """Decoder of `SparseDLLM`: steps 0 and 1 of a block compute everything, then it reads itself and what was kept."""

    def __init__(self, model: Any, state: State, keep: float) -> None:
        super().__init__(model, state)
        self.keep = keep

    def first_step(self) -> BlockLogits:
        self.eviction: EvictionAttention | None = None
        return super().first_step()

    def later_step(self) -> BlockLogits:
        rows = self.rows()
        if self.eviction is None:
            self.eviction = EvictionAttention(self, rows)
            return self.full_pass(self.eviction)
        self.count(rows, self.eviction.kept[0][0].shape[2])
        return self.partial_pass(rows, self.eviction)


class EvictionAttention(CachedAttention):
    """A full pass that copies the rows of the block and the best other tokens; later passes attend to these only."""

    def __init__(self, decoder: EvictionDecoder, rows: Rows) -> None:
        super().__init__(decoder.cache, decoder.allowed)
        self.state, self.share, self.rows = decoder.state, decoder.keep, rows
        self.block = slice(decoder.state.block.start - decoder.shift, decoder.state.block.end)
        self.kept: dict[int, tuple[Keys, Keys, Allowed]] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if layer in self.kept:
            keys, values, allowed = self.kept[layer]
            keys[:, :, -self.rows.shape[1] :], values[:, :, -self.rows.shape[1] :] = key, value
            return attend(query, keys, values, allowed, scale)
        output = super().__call__(layer, query, key, value, scale)
        keys, values = self.cache.read(layer)
        places = torch.cat([self._best(query, keys), self.rows], 1)
        index = places[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[-1])
        allowed = None if self.allowed is None else self.allowed.gather(1, places)
        self.kept[layer] = keys.gather(2, index), values.gather(2, index), allowed
        return output

    def _best(self, query: Queries, keys: Keys) -> Int[Tensor, "b k"]:
        """Positions outside the block with the highest scores, as Sparse-dLLM's code has them:

        s_j = max over |i - j| <= 1 of mean_h <mean over the block's queries of q^h, k_i^h>
        """
        mean = query[:, :, self.block].mean(2)
        groups = mean.view(len(mean), keys.shape[1], -1, mean.shape[-1]).sum(2)  # the mean over heads, times heads
        score = torch.einsum("bgd,bgnd->bn", groups, keys).float()
        if self.allowed is not None:
            score = score.masked_fill(~self.allowed, -torch.inf)
        score = F.max_pool1d(score[:, None], POOL, stride=1, padding=POOL // 2)[:, 0]
        score[:, self.block] = -torch.inf
        count = max(1, int(self.share * (keys.shape[2] - self.rows.shape[1])))
        self.state.stats.kept.append(float(count))
        return score.topk(count, 1).indices.sort(1).values
