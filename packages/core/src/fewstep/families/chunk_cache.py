"""`ChunkCache`: keys and values of the finished chunks of a causal video, never changed once they are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
class Segment:
    """Committed keys and values of some frames that follow each other, in all layers."""

    frames: int
    layers: tuple[tuple[tuple[Tensor, ...], tuple[Tensor, ...]], ...]
    """Stored keys and values, by layer."""

    def copy(self, first: int, last: int) -> Segment:
        """Frames ``first..last-1`` in memory of their own, so that the rest can be freed."""

        def copied(stored: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(_frames(part, self.frames, first, last).clone() for part in stored)

        return Segment(last - first, tuple((copied(keys), copied(values)) for keys, values in self.layers))


@dataclass(frozen=True)
class ChunkCache:
    """Committed keys and values of all layers, immutable: `commit` returns another cache, so a fork is free and safe.

    Caches of one video share what they hold: each chunk is a segment of its own, and none is copied to add another.
    Tensors carry no gradient: chunks do not train each other.
    """

    policy: CachePolicy = CachePolicy()
    frames: int = 0
    """Frames committed since the beginning; the next chunk starts at this one."""
    segments: tuple[Segment, ...] = ()
    """Chunks that are held, in order."""

    @property
    def kept(self) -> int:
        """Frames whose keys and values are held."""
        return sum(segment.frames for segment in self.segments)

    @property
    def nbytes(self) -> int:
        """Bytes held, also where other caches hold them too."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All tensors that are held."""
        for segment in self.segments:
            yield from (part for layer in segment.layers for stored in layer for part in stored)

    def visible(self, chunk: int) -> int:
        """Number of past frames that a chunk of `chunk` frames attends to."""
        past = self.policy.past(chunk)
        return self.kept if past is None else min(self.kept, past)

    def attend(self, layer: int, keys: States, values: States, chunk: int) -> tuple[States, States]:
        """Past keys and values of one layer, followed by those of the current chunk of `chunk` frames.

        With a relative policy keys are not rotated yet, neither the past ones nor, by convention, the given ones.
        """
        if not self.segments:
            return keys, values
        parts: tuple[list[States], list[States]] = [], []
        for segment, first, last in self._seen(self.visible(chunk)):
            for stored, found in zip(segment.layers[layer], parts, strict=True):
                part = tuple(_frames(tensor, segment.frames, first, last) for tensor in stored)
                found.append(self.policy.codec.decode(part, keys.dtype))
        return torch.cat([*parts[0], keys], 1), torch.cat([*parts[1], values], 1)

    @torch.no_grad()
    def commit(self, fresh: Sequence[tuple[States, States]], chunk: int) -> ChunkCache:
        """A cache that also holds the keys and values of a finished chunk of `chunk` frames, given layer by layer."""
        encode, past = self.policy.codec.encode, self.policy.past(chunk)
        layers = tuple((encode(keys.detach()), encode(values.detach())) for keys, values in fresh)
        longer = replace(self, frames=self.frames + chunk, segments=(*self.segments, Segment(chunk, layers)))
        if past is None or longer.kept <= past:
            return longer
        kept = (
            segment if (first, last) == (0, segment.frames) else segment.copy(first, last)
            for segment, first, last in longer._seen(past)
        )
        return replace(longer, segments=tuple(kept))

    def reset(self) -> ChunkCache:
        """An empty cache of the same policy."""
        return ChunkCache(self.policy)

    def _seen(self, count: int) -> Iterator[tuple[Segment, int, int]]:
        """Segments with the range of their frames in the sink or among the last ones, `count` frames in all."""
        sink, at = min(self.policy.sink, count), 0
        recent = self.kept - (count - sink)
        for segment in self.segments:
            end = at + segment.frames
            all_seen = recent <= sink  # nothing lies between them
            ranges = [(at, end)] if all_seen else [(at, min(end, sink)), (max(at, recent), end)]
            yield from ((segment, first - at, last - at) for first, last in ranges if first < last)
            at = end


def _frames(part: Tensor, frames: int, first: int, last: int) -> Tensor:
    """Tokens of frames ``first..last-1`` of a tensor that holds `frames` frames."""
    tokens = part.shape[1] // frames
    return part[:, first * tokens : last * tokens]
