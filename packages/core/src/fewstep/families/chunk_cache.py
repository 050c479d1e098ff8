"""`ChunkCache`: keys and values of the finished chunks of a causal video, never changed once they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

States = Float[Tensor, "b n h d"]
"""Keys or values of ``n`` tokens, frame by frame."""


class Codec(Protocol):
    """A way to store keys and values in fewer bytes."""

    def encode(self, states: States) -> tuple[Tensor, ...]:
        """Tensors to store; the second dimension of each is that of tokens."""

    def decode(self, stored: tuple[Tensor, ...], dtype: torch.dtype) -> States:
        """The states again, nearly."""


class Plain:
    """Stores keys and values as they are."""

    def encode(self, states: States) -> tuple[Tensor, ...]:
        """The states themselves."""
        return (states,)

    def decode(self, stored: tuple[Tensor, ...], dtype: torch.dtype) -> States:
        """The states themselves."""
        return stored[0].to(dtype)


class Int8:
    """Stores eight bits a number, with one scale for each token and head: half the bytes of bfloat16."""

    def encode(self, states: States) -> tuple[Tensor, ...]:
        """Rounded numbers in [-127, 127] and their scales in float32."""
        scale = states.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        return (states.float() / scale).round().to(torch.int8), scale

    def decode(self, stored: tuple[Tensor, ...], dtype: torch.dtype) -> States:
        """Numbers times scales, in `dtype`."""
        numbers, scale = stored
        return (numbers * scale).to(dtype)


CODECS: Mapping[str, Codec] = {"plain": Plain(), "int8": Int8()}
"""Codecs by name."""


@dataclass(frozen=True, kw_only=True)
class CachePolicy:
    """Frames that a chunk attends to, and how their keys are kept."""

    window: int | None = None
    """Latent frames that are attended to, the current chunk included; None: all."""
    sink: int = 0
    """First frames of the video that stay in the window for ever, counted in `window`."""
    relative: bool = False
    """Rotate keys when they are read, at positions within the window, so that a video has no longest length."""
    codec: Codec = Plain()

    def __post_init__(self) -> None:
        if self.sink < 0 or (self.window is not None and self.window < 1):
            raise ValueError(f"window and sink count frames, found window {self.window} and sink {self.sink}")
        if self.window is None and self.sink:
            raise ValueError(f"a sink of {self.sink} frames needs a window: without one every frame is kept")
        if self.window is not None and self.sink >= self.window:
            raise ValueError(f"a sink of {self.sink} frames fills the window of {self.window}: no room for a chunk")

    def past(self, chunk: int) -> int | None:
        """Most past frames, sink included, that a chunk of `chunk` frames attends to; None: all.

        Raises:
            ValueError: the window has no room for the sink and the chunk.
        """
        if self.window is None:
            return None
        if chunk + self.sink > self.window:
            raise ValueError(
                f"a chunk of {chunk} frames and a sink of {self.sink} do not fit into a window of {self.window} frames"
            )
        return self.window - chunk


@dataclass(frozen=True)
class ChunkCache:
    """Committed keys and values of all layers, immutable: `commit` returns another cache, so a fork is free and safe.

    Tensors carry no gradient: chunks do not train each other.
    """

    policy: CachePolicy = CachePolicy()
    frames: int = 0
    """Frames committed since the beginning; the next chunk starts at this one."""
    kept: int = 0
    """Frames whose keys and values are held."""
    layers: tuple[tuple[tuple[Tensor, ...], tuple[Tensor, ...]], ...] = ()
    """Stored keys and values, by layer."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(part.nbytes for layer in self.layers for stored in layer for part in stored)

    def visible(self, chunk: int) -> int:
        """Number of past frames that a chunk of `chunk` frames attends to."""
        past = self.policy.past(chunk)
        return self.kept if past is None else min(self.kept, past)

    def attend(self, layer: int, keys: States, values: States, chunk: int) -> tuple[States, States]:
        """Past keys and values of one layer, followed by those of the current chunk of `chunk` frames.

        With a relative policy keys are not rotated yet, neither the past ones nor, by convention, the given ones.
        """
        if not self.kept:
            return keys, values
        tokens, seen = keys.shape[1] // chunk, self.visible(chunk)
        past = (
            self.policy.codec.decode(_window(stored, tokens, self.kept, seen, self.policy.sink), keys.dtype)
            for stored in self.layers[layer]
        )
        past_keys, past_values = past
        return torch.cat([past_keys, keys], 1), torch.cat([past_values, values], 1)

    def commit(self, fresh: Sequence[tuple[States, States]], chunk: int) -> ChunkCache:
        """A cache that also holds the keys and values of a finished chunk of `chunk` frames, given layer by layer."""
        tokens, policy = fresh[0][0].shape[1] // chunk, self.policy
        held, past = self.kept + chunk, policy.past(chunk)
        kept = held if past is None else min(held, past)
        before = self.layers or tuple(((), ()) for _ in fresh)
        with torch.no_grad():
            layers = tuple(
                tuple(
                    _window(_joined(stored, policy.codec.encode(states.detach())), tokens, held, kept, policy.sink)
                    for stored, states in zip(layer, pair, strict=True)
                )
                for layer, pair in zip(before, fresh, strict=True)
            )
        return replace(self, frames=self.frames + chunk, kept=kept, layers=layers)  # type: ignore[arg-type]

    def reset(self) -> ChunkCache:
        """An empty cache of the same policy."""
        return ChunkCache(self.policy)


def _joined(stored: tuple[Tensor, ...], fresh: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not stored:
        return fresh
    return tuple(torch.cat([old, new], 1) for old, new in zip(stored, fresh, strict=True))


def _window(stored: tuple[Tensor, ...], tokens: int, held: int, kept: int, sink: int) -> tuple[Tensor, ...]:
    """The sink and the last frames, `kept` in all, of `held` frames of `tokens` tokens."""
    if kept == held:
        return stored
    first, last = min(sink, kept) * tokens, (held - kept + min(sink, kept)) * tokens
    return tuple(torch.cat([part[:, :first], part[:, last:]], 1) for part in stored)
