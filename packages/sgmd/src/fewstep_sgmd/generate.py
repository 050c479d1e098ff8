"""``fewstep run sgmd``: a video from a prompt, written to a file."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fewstep.contract import Loaded
from fewstep.data import video
from fewstep.families import wan
from jaxtyping import Float
from torch import Tensor, nn

from .method import SGMD

LOOKABLE = 240
"""Pixels of the shorter side that smaller clips are enlarged to."""


@dataclass(frozen=True, kw_only=True)
class Generate:
    """A video from a prompt; sizes that are not given are those that the student was trained on."""

    prompt: str
    """What the video shows."""
    output: Path
    """File that is written: .mp4 or .gif."""
    frames: int | None = None
    """Number of frames, one more than a multiple of 4 for Wan."""
    height: int | None = None
    """Rows, a multiple of 16 for Wan."""
    width: int | None = None
    """Columns, a multiple of 16 for Wan."""
    seed: int = 0
    """Of the noise that it begins with."""
    fps: float = 16.0
    """Frames a second in the file."""
    zoom: int = 0
    """Pixels of the file for each pixel of the video, each way; 0 enlarges small videos so that they can be seen."""

    def __call__(self, loaded: Loaded, method: SGMD) -> None:
        """Make the video and say what it took."""
        video.check_writable(self.output)
        pipe = loaded.model
        transformer = wan.check(pipe)
        pipe.set_progress_bar_config(disable=True)
        with method.apply(pipe), counted(transformer) as calls:
            start = time.perf_counter()
            frames = self.frames_of(pipe, method)
            seconds = time.perf_counter() - start
        zoom = self.zoom or max(1, math.ceil(LOOKABLE / min(frames.shape[2:])))
        video.write(frames, self.output, fps=self.fps, zoom=zoom)
        shape = "x".join(map(str, (frames.shape[0], *frames.shape[2:])))
        print(f"video: {shape}\nnetwork calls: {len(calls)}\nseconds: {seconds:.2f}\nwrote {self.output}")

    def frames_of(self, pipe: Any, method: SGMD) -> Float[Tensor, "f c h w"]:
        """The clip with values in [0, 1]; a pipeline without VAE has the pixels themselves as latents."""
        given = {"num_frames": self.frames, "height": self.height, "width": self.width}
        trained = dict(zip(given, method.size or (), strict=False))
        call = trained | {name: value for name, value in given.items() if value is not None}
        tokens = min(512, pipe.tokenizer.model_max_length)
        generator = torch.Generator().manual_seed(self.seed)
        raw = pipe.vae is None
        kind = "latent" if raw else "pt"
        out = pipe(self.prompt, generator=generator, max_sequence_length=tokens, output_type=kind, **call).frames[0]
        return out.transpose(0, 1) / 2 + 0.5 if raw else out


@contextmanager
def counted(network: nn.Module) -> Iterator[list[None]]:
    """One entry for each call of `network` inside."""
    calls: list[None] = []
    hook = network.register_forward_pre_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        hook.remove()
