"""The attention of one forward pass, chosen by a plan: what is written to the cache and what is read from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from fewstep.families.attention import AttentionFunction
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


class Plan(Protocol):
    """How the layers of one forward pass attend; travels to them as the keyword argument ``plan``."""

    def attend(
        self, layer: int, query: Float[Tensor, "b h r d"], key: Float[Tensor, "b g r d"], value: Any, scale: float
    ) -> Float[Tensor, "b h r d"]:
        """The attention output of the rows; `query` and `key` are rotated, `key` and `value` those of the rows."""


def planned(current: AttentionFunction) -> AttentionFunction:
    """An attention function of transformers that follows the plan of the call, or else is `current`."""

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, plan=None, **kwargs: Any):
        if plan is None:
            return current(module, query, key, value, mask, **kwargs)
        output = plan.attend(module.layer_idx, query, key, value, kwargs.get("scaling") or query.shape[-1] ** -0.5)
        return output.transpose(1, 2).contiguous(), None

    return attention


def attend(
    query: Float[Tensor, "b h r d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s d"],
    allowed: Bool[Tensor, "b s"] | None,
    scale: float,
) -> Float[Tensor, "b h r d"]:
    """Bidirectional attention; keys are never expanded: the query heads of a KV head become rows of it."""
    batch, heads, rows, dim = query.shape
    packed = query.reshape(batch, key.shape[1], -1, dim)
    mask = None if allowed is None else allowed[:, None, None]
    return F.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scale).view(batch, heads, rows, dim)


def attend_and_weigh(
    query: Float[Tensor, "b h r d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s d"],
    allowed: Bool[Tensor, "b s"] | None,
    scale: float,
    weights: Float[Tensor, "b r"],
) -> tuple[Float[Tensor, "b h r d"], Float[Tensor, "b s"]]:
    """`attend` for few rows, and the attention mass of each key: mean over heads, weighted sum over rows."""
    batch, heads, rows, dim = query.shape
    packed = query.reshape(batch, key.shape[1], -1, dim) * scale
    scores = (packed @ key.mT).float()
    if allowed is not None:
        scores.masked_fill_(~allowed[:, None, None], -torch.inf)
    shares = scores.softmax(-1)
    output = (shares.to(value.dtype) @ value).view(batch, heads, rows, dim)
    by_row = weights.repeat(1, heads // key.shape[1])[:, None, None] / heads  # the rows of a packed KV head
    return output, (by_row.expand(-1, key.shape[1], -1, -1) @ shares).sum((1, 2))


class KeyValues:
    """Rotated keys and values of all positions and layers, written in place.

    One position more than the sequence has takes the rows that only pad. Nothing is ever evicted.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.keys: dict[int, Float[Tensor, "b g n d"]] = {}
        self.values: dict[int, Float[Tensor, "b g n d"]] = {}

    def write(
        self,
        layer: int,
        positions: Int[Tensor, "b r"] | None,
        key: Float[Tensor, "b g r d"],
        value: Float[Tensor, "b g r d"],
    ) -> None:
        """Replace the entries at `positions`; None writes all of them."""
        if layer not in self.keys:
            batch, groups, _, dim = key.shape
            for store in (self.keys, self.values):
                store[layer] = key.new_empty(batch, groups, self.length + 1, dim)
        for store, new in ((self.keys[layer], key), (self.values[layer], value)):
            if positions is None:
                store[:, :, : self.length] = new
                continue
            for row, where in enumerate(positions):
                store[row].index_copy_(1, where, new[row])

    def read(self, layer: int) -> tuple[Float[Tensor, "b g n d"], Float[Tensor, "b g n d"]]:
        """Keys and values of all positions."""
        return self.keys[layer][:, :, : self.length], self.values[layer][:, :, : self.length]


class Full:
    """Every position attends to every position; all keys and values are written. The refresh."""

    def __init__(self, cache: KeyValues, allowed: Bool[Tensor, "b n"] | None) -> None:
        self.cache, self.allowed = cache, allowed

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.cache.write(layer, None, key, value)
        return attend(query, key, value, self.allowed, scale)


class Cached:
    """Some rows, written in place, attend to the whole cache."""

    def __init__(self, cache: KeyValues, allowed: Bool[Tensor, "b n"] | None, positions: Int[Tensor, "b r"]) -> None:
        self.cache, self.allowed, self.positions = cache, allowed, positions

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.cache.write(layer, self.positions, key, value)
        return attend(query, *self.cache.read(layer), self.allowed, scale)


def padded(found: Sequence[Int[Tensor, " n"]], fill: int) -> Int[Tensor, "b n"]:
    """Lists of positions as one tensor, the shorter ones filled up with `fill`."""
    return torch.nn.utils.rnn.pad_sequence(list(found), batch_first=True, padding_value=fill)
