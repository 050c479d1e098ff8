"""What of a slim segment stays where the model runs while decoding, and how each step chooses it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from fewstep.families.attention import QueryCapture
from fewstep.families.kv_cache import GrowingLayer
from jaxtyping import Float, Int
from torch import Tensor

from .arena import Arena
from .block_index import BlockIndex
from .cache import SlimCache, Stage
from .copier import Copier
from .options import Keep, blocks_kept
from .revive import revive
from .select import unit_means

if TYPE_CHECKING:
    from .decoder import SlimDecoder


def remember(
    stage: Stage,
    settings: Any,
    number: Int[Tensor, " n"],
    keys: Float[Tensor, "g n d"],
    hidden: Float[Tensor, "n width"],
) -> None:
    """Note the full blocks of one row that decoding may choose from: units of their keys, and what revives them."""
    block, full = settings.block, number.numel() // settings.block
    stage.candidates.append((number[: full * block : block] // block).tolist())
    stage.units.append(unit_means(keys[:, : full * block], settings.unit))
    if settings.revive == "recompute":
        parts = hidden[: full * block].cpu().split(block)
        stage.hidden = dict(zip(stage.candidates[-1], parts, strict=True))


def open_arena(
    stage: Stage, layers: list[GrowingLayer], prompts: list[int], keep: Keep, settings: Any, copier: Copier
) -> None:
    """Leave only a budget of `keep` of a segment's blocks where the model runs; nothing to do where that is all."""
    block = settings.block
    full = [own[: tokens // block] for own, tokens in zip(stage.blocks, stage.tokens, strict=True)]
    ragged = [int(tokens % block > 0) for tokens in stage.tokens]  # a ragged tail stays, outside the slots
    slots = [
        blocks_kept(keep, prompt, block, settings.sink_blocks + 1) - r
        for prompt, r in zip(prompts, ragged, strict=True)
    ]
    if stage.candidates == full and all(s >= len(own) for s, own in zip(slots, full, strict=True)):
        return
    index = BlockIndex(
        stage.candidates,
        stage.units,
        per_block=block // settings.unit,
        score=settings.score,
        carry=settings.carry,
        sinks=settings.sink_blocks,
        tails=[max(settings.tail_blocks - r, 0) for r in ragged],
    )
    stage.arena = Arena(
        layers,
        [layers[0].keys.shape[2] - tokens for tokens in stage.tokens],
        blocks=full,
        slots=slots,
        block=block,
        overlap=settings.overlap,
        index=index,
        copier=copier,
    )
    stage.valid = stage.arena.valid


def choose_again(decoder: SlimDecoder, stage: Any, tap: QueryCapture, cache: SlimCache) -> None:
    """Let every row of a segment with an arena ask for its blocks, with the mean of the last `window` queries."""
    window = decoder.settings.window
    queries = torch.cat([stage.recent, tap.query], dim=2)
    for row, query in enumerate(queries[:, :, -window:].float().mean(2)):
        blocks = stage.arena.choose(row, query)
        if missing := stage.arena.missing(row, blocks):
            revive(decoder, cache, stage, missing)
        stage.arena.want(row, blocks)
    stage.recent = queries[:, :, max(queries.shape[2] - window + 1, 0) :]
