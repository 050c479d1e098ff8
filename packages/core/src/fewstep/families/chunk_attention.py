"""Self-attention of a causal Wan: a call's frames, cache and mask travel with its rotary embedding.

The model hands the rotary embedding from its ``forward`` to every attention layer, so what travels with it belongs to
one call: threads do not meet, and activation checkpointing recomputes with the cache that the pass had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .chunk_cache import ChunkCache, States

Angles = tuple[Float[Tensor, "1 n 1 d"], Float[Tensor, "1 n 1 d"]]
"""Cosines and sines of the rotation of each token."""


@dataclass
class ChunkCall:
    """Positions, cache and mask of one call of the network, for its attention layers."""

    frames: Int[Tensor, " f"]
    """Position of each frame of the input; on the CPU, so that nothing waits for a GPU."""
    cache: ChunkCache = ChunkCache()
    mask: Bool[Tensor, "q k"] | None = None
    """Tokens that each token of the input attends to; None: all, and what is in `cache`. Naive form of `forced`."""
    forced: int = 0
    """Chunks of a video that is given twice, clean and then noisy (see `teacher_forced_attention`); 0: one chunk, which
    attends to itself and to everything in `cache`."""
    recorded: list[tuple[States, States]] | None = None
    """Keys and values of each layer, where the call is to be committed."""


class _Rotation(tuple):
    """Rotary embedding of a call, ``(cos, sin)``, that carries the call and the rotation of the cached keys."""

    call: ChunkCall
    past: Angles | None


_current: ContextVar[ChunkCall | None] = ContextVar("fewstep_chunk_call", default=None)


@contextmanager
def calling(call: ChunkCall) -> Iterator[None]:
    """Let the network's next forward in this thread be `call`."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)


@dataclass
class CausalRope:
    """Forward of the rotary embedding: tables at the positions of the current call, or the stock one outside of one."""

    rope: Any
    stock: Any = field(init=False)

    def __post_init__(self) -> None:
        self.stock = self.rope.forward

    def __call__(self, hidden_states: Tensor) -> Any:
        call = _current.get()
        if call is None:
            return self.stock(hidden_states)
        _, height, width = self.rope.patch_size
        grid = hidden_states.shape[3] // height, hidden_states.shape[4] // width
        rotation = _Rotation(angles(self.rope, call.frames, *grid))
        rotation.call, rotation.past = call, None
        if call.cache.policy.relative:
            past = torch.arange(call.cache.visible(len(call.frames)))
            rotation.past = angles(self.rope, past, *grid)
        return rotation


def angles(rope: Any, frames: Int[Tensor, " f"], height: int, width: int) -> Angles:
    """Rotation of the tokens of frames at the given positions, on a grid of `height` by `width` tokens.

    Raises:
        ValueError: a position lies beyond the table.
    """
    if len(frames) and int(frames.max()) >= rope.max_seq_len:
        raise ValueError(
            f"frame {int(frames.max())} lies beyond the {rope.max_seq_len} positions of this model's rotary table: "
            "for longer videos use a cache with a window and relative positions"
        )
    sizes = [rope.t_dim, rope.h_dim, rope.w_dim]
    shape, frames = (len(frames), height, width), frames.to(rope.freqs_cos.device)
    rotation = []
    for table in (rope.freqs_cos, rope.freqs_sin):
        time, rows, columns = table.split(sizes, 1)
        parts = [time[frames][:, None, None], rows[:height][None, :, None], columns[:width][None, None]]
        rotation.append(torch.cat([part.expand(*shape, -1) for part in parts], -1).reshape(1, -1, 1, sum(sizes)))
    return rotation[0], rotation[1]


def rotate(states: States, rotation: Sequence[Tensor]) -> States:
    """Rotate pairs of neighbouring channels, as Wan does."""
    cos, sin = rotation[0][..., 0::2], rotation[1][..., 1::2]
    first, second = states.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], -1)
    return turned.flatten(-2).type_as(states)


@dataclass
class CausalProcessor:
    """Self-attention of one layer: to the cached chunks and the current one, or the stock one outside of a call."""

    layer: int
    stock: Any

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        if not isinstance(rotary_emb, _Rotation):
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        call = rotary_emb.call
        query, keys, values = (part.unflatten(2, (attn.heads, -1)) for part in _projections(attn, hidden_states))
        query, keys = query.type_as(values), keys.type_as(values)  # norms under autocast answer in float32
        query, raw = rotate(query, rotary_emb), keys
        keys = rotate(keys, rotary_emb)
        stored = raw if call.cache.policy.relative else keys
        if call.recorded is not None:
            call.recorded.append((stored, values))
        keys, values = self._with_past(rotary_emb, keys, values)
        query, keys, values = (part.transpose(1, 2) for part in (query, keys, values))
        if call.forced:
            out = teacher_forced_attention(query, keys, values, call.forced).transpose(1, 2)
        else:
            out = F.scaled_dot_product_attention(query, keys, values, attn_mask=call.mask).transpose(1, 2)
        return attn.to_out[1](attn.to_out[0](out.flatten(2).type_as(query)))

    def _with_past(self, rotation: _Rotation, keys: States, values: States) -> tuple[States, States]:
        call, chunk = rotation.call, len(rotation.call.frames)
        fresh = keys.shape[1]
        keys, values = call.cache.attend(self.layer, keys, values, chunk)
        if rotation.past is None or keys.shape[1] == fresh:
            return keys, values
        past = rotate(keys[:, :-fresh], rotation.past)
        return torch.cat([past, keys[:, -fresh:]], 1), values


def teacher_forced_attention(
    query: Float[Tensor, "b h 2n d"], keys: Float[Tensor, "b h 2n d"], values: Float[Tensor, "b h 2n d"], chunks: int
) -> Float[Tensor, "b h 2n d"]:
    """Attention over ``[clean; noisy]`` of a video of `chunks` chunks, a few products without a mask for each.

    A clean chunk sees clean ones up to itself; a noisy one sees clean ones before it, and itself. These are
    ``(chunks + 1) / (4 chunks)`` of the products that a mask computes and then throws away or keeps.
    """
    half = query.shape[2] // 2
    size, clean, noisy = half // chunks, [], []
    for start in range(0, half, size):
        own, late = slice(start, start + size), slice(half + start, half + start + size)
        past_keys, past_values = keys[:, :, : start + size], values[:, :, : start + size]
        clean.append(F.scaled_dot_product_attention(query[:, :, own], past_keys, past_values))
        seen_keys, seen_values = (torch.cat([part[:, :, :start], part[:, :, late]], 2) for part in (keys, values))
        noisy.append(F.scaled_dot_product_attention(query[:, :, late], seen_keys, seen_values))
    return torch.cat([*clean, *noisy], 2)


def _projections(attn: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if attn.fused_projections:
        query, keys, values = attn.to_qkv(hidden_states).chunk(3, -1)
    else:
        query, keys, values = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
    return attn.norm_q(query), attn.norm_k(keys), values
