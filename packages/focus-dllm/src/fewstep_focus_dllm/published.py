"""The caches as Fast-dLLM published them for LLaDA: keys are stored without rotation and all rotated at each step."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .attend import KeyValues, Plan, attend
from .decoder import Caching
from .state import Answers, State


class Published(Caching):
    """The same tokens as the tuned caches, at the published cost: rotating ``N`` keys in each layer and step."""

    def __init__(self, model: Any, state: State, suffix: bool) -> None:
        """With `suffix`, later steps compute everything behind the block too: the prefix cache."""
        super().__init__(model, state)
        self.suffix = suffix
        every = torch.arange(state.length, device=state.tokens.device) - state.pad[:, None]
        probe = torch.empty(1, device=state.tokens.device, dtype=model.dtype)
        self.angles = model.model.rotary_emb(probe, every.clamp(min=0))

    def hidden(self, tokens: Tensor, positions: Int[Tensor, "b r"], plan: Plan | None) -> Float[Tensor, "b r d"]:
        # at position 0 the model's own rotation is the identity, so that plans see keys as they are stored
        zeros = torch.zeros_like(positions)
        return self.model.model(input_ids=tokens, position_ids=zeros, use_cache=False, plan=plan).last_hidden_state

    def rows(self) -> Int[Tensor, "b r"]:
        start, end = self.state.block.start - self.shift, self.state.length if self.suffix else self.state.block.end
        return self.range(start, end)

    def first(self) -> Answers:
        return self.everything(Unrotated(self.cache, self.allowed, self.angles, None))

    def next(self) -> Answers:
        rows = self.rows()
        self.count(rows, self.state.length)
        return self.some(rows, Unrotated(self.cache, self.allowed, self.angles, rows))


class Unrotated:
    """Writes keys as they come, then rotates the queries of the rows and the keys of all positions."""

    def __init__(
        self,
        cache: KeyValues,
        allowed: Bool[Tensor, "b n"] | None,
        angles: tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]],
        rows: Int[Tensor, "b r"] | None,
    ) -> None:
        self.cache, self.allowed, self.angles, self.rows = cache, allowed, angles, rows

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.cache.write(layer, self.rows, key, value)
        keys, values = self.cache.read(layer)
        of_rows = self.angles
        if self.rows is not None:
            index = self.rows[..., None].expand(-1, -1, query.shape[-1])
            cos, sin = (angle.expand(len(query), -1, -1).gather(1, index) for angle in self.angles)
            of_rows = cos, sin
        return attend(rotated(query, of_rows), rotated(keys, self.angles), values, self.allowed, scale)


def rotated(
    heads: Float[Tensor, "b h n d"], angles: tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]
) -> Float[Tensor, "b h n d"]:
    """Rotary position embedding in the half-split layout of Llama and Qwen2."""
    cos, sin = (angle[:, None] for angle in angles)
    left, right = heads.chunk(2, -1)
    return heads * cos + torch.cat([-right, left], -1) * sin
