"""A video in the making: its chunks, the prompts that some of them begin with, and figures of what is there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from fewstep.families.wan_stream import Chunk, WanStream
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Chunks of a video, and the prompts that it goes on with."""

    count: int | None
    """Chunks; None: endless."""
    prompts: dict[int, str] = field(default_factory=dict)
    """Prompts by the number of the first chunk under them, from 0."""

    def of(self, stream: WanStream) -> Iterator[Chunk]:
        """The chunks of a stream, with its prompt changed where it is time."""
        number = 0
        while self.count is None or number < self.count:
            if number and number in self.prompts:
                stream.switch(self.prompts[number])
            yield next(stream)
            number += 1


@dataclass
class Made:
    """Figures of what was made so far."""

    total: int | None
    """Frames that are wanted; None: endless."""
    frames: int = 0
    seconds: float = 0.0
    """Time in the making of chunks, without waiting for a browser."""
    first: float = 0.0
    """Seconds until the first frames were there."""
    cache: int = 0
    """Bytes of keys and values."""

    def add(self, chunk: Chunk, begun: float) -> Float[Tensor, "f 3 h w"]:
        """Count a chunk; returns those of its frames that are wanted."""
        frames = chunk.frames[0] if self.total is None else chunk.frames[0, : self.total - self.frames]
        self.first = self.first or time.perf_counter() - begun
        self.frames, self.seconds, self.cache = (
            self.frames + len(frames),
            self.seconds + chunk.seconds,
            chunk.cache_bytes,
        )
        return frames

    def shown(self) -> dict[str, str]:
        """Figures as the page has them."""
        return {
            "frames": f"{self.frames:,}",
            "fps": f"{self.frames / self.seconds:.1f}",
            "first": f"{self.first:.2f} s",
            "cache": f"{self.cache / 2**20:.1f} MiB" if self.cache >= 2**20 else f"{self.cache / 2**10:.1f} KiB",
        }

    def line(self) -> str:
        """Figures in one line."""
        shown = self.shown()
        return f"{shown['frames']} frames, {shown['fps']} FPS, first chunk {shown['first']}, cache {shown['cache']}"

    def facts(self) -> dict[str, str]:
        """Figures at the end."""
        if not self.frames:
            return {"frames": "0"}
        names = {"frames": "frames", "fps": "frames a second", "first": "first chunk", "cache": "cache"}
        return {names[name]: value for name, value in self.shown().items()}
