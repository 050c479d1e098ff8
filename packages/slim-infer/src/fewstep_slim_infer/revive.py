"""Bring a block back that the prefill dropped: run it through its segment now, from its stored hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from fewstep.families.attention import QueryCapture
from jaxtyping import Float
from torch import Tensor

from .select import unit_means
from .tokens import Tokens

if TYPE_CHECKING:
    from .cache import SlimCache, Stage
    from .decoder import SlimDecoder


class Beside:
    """Shows attention a layer's cached columns and new ones, and keeps only the new ones."""

    def __init__(self, cache: SlimCache) -> None:
        self._cache = cache
        self.new: list[tuple[Float[Tensor, "1 g n d"], Float[Tensor, "1 g n d"]]] = []

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Cached columns first, then the new ones."""
        self.new.append((keys, values))
        held = self._cache.layers[layer]
        held.before_use()
        return torch.cat([held.keys, keys], dim=2), torch.cat([held.values, values], dim=2)


def revive(decoder: SlimDecoder, cache: Any, stage: Any, blocks: list[int]) -> None:
    """Compute keys and values of `blocks` in the layers of `stage`, each token seeing earlier active ones.

    The blocks become known to the stage's arena and candidates of the next stage. One row only.
    """
    block, arena = decoder.settings.block, stage.arena
    blocks = sorted(blocks)
    number = (torch.tensor(blocks)[:, None] * block + torch.arange(block)).flatten()
    device = cache.layers[0].device
    hidden = torch.cat([stage.hidden[b] for b in blocks])[None].to(device)
    cos, sin = (part[:, number.to(device)] for part in cache.rope)
    tokens = Tokens(decoder.feed_forward(stage.layers[0] - 1, hidden), (cos, sin), number[None])
    # the prompt's tail is always active, and everything generated is later than any block
    first_tail = cache.prompt - cache.prompt % block
    seen = arena.numbers(0, first_tail)
    columns = cache.layers[stage.layers[0]].keys.shape[2]
    seen = torch.cat([seen, torch.full((columns - seen.numel(),), cache.seen), number])
    mask = (seen[None, :] <= number[:, None])[None, None].to(device)
    after = next((s for s in cache.stages if s.layers[0] == stage.layers[-1] + 1), None)
    beside, tap = Beside(cache), QueryCapture()
    for layer in stage.layers:
        decoder.attend(layer, tokens, mask, beside, tap, {})
        if layer == stage.layers[-1] and after is not None:
            _offer(after, blocks, tokens.hidden[0], beside.new[-1][0][0], decoder.settings.unit)
        tokens.hidden = decoder.feed_forward(layer, tokens.hidden)
    both = torch.stack([torch.stack([keys[0], values[0]]) for keys, values in beside.new])
    for b, part in zip(blocks, both.split(block, dim=3), strict=True):
        arena.learn(0, b, part.contiguous())


def _offer(stage: Stage, blocks: list[int], hidden: Tensor, keys: Float[Tensor, "g n d"], unit: int) -> None:
    """Make `blocks` candidates of the next stage."""
    block = hidden.shape[0] // len(blocks)
    parts = zip(blocks, hidden.cpu().split(block), keys.split(block, dim=1), strict=True)
    for b, states, own in parts:
        if b not in stage.hidden:
            stage.hidden[b] = states
            if stage.arena is not None:
                stage.arena.index.learn(0, b, unit_means(own, unit))
