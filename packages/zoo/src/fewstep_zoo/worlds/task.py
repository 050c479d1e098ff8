"""Tasks of panning worlds: ``worlds`` makes clips, ``worlds-continuation`` goes on with true beginnings."""

from __future__ import annotations

import functools
import io
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from fewstep.bench import Outcome, Sample
from fewstep.contract import Loaded
from fewstep.data.images import sample_grid
from fewstep.errors import UnsupportedModelError
from fewstep.families import wan
from fewstep.families.wan_stream import StreamOptions
from fewstep.flow import StepGrid, even_steps
from fewstep.students.causal import options_of
from torch import Tensor

from . import data, measures, model
from .clips import FRAMES, SIDE, Split, draw_scenes, make
from .continuation import continued

REAL = 64
"""Number of held-out clips that pictures are compared with."""


@dataclass(frozen=True, kw_only=True)
class Worlds:
    """Make clips of panning worlds from prompts: time for each, agreement with the prompt, steadiness, kernel distance.

    Raises:
        ValueError: a number is too small.
    """

    clips: int = 48
    """Number of clips, with prompts drawn like those of training."""
    batch: int = 8
    """Clips that are made at once; 1 is what a single user waits for."""
    frames: int = FRAMES
    """Frames of a clip."""
    steps: int = model.STEPS
    """Steps of the unchanged model; a few-step student makes its own number."""
    guidance: float = model.GUIDANCE
    """Guidance scale of the unchanged model; a student makes none."""
    split: Split = "held-out"
    """``tuning``: worlds to choose settings on; ``held-out``: worlds to measure on."""
    show: int = 4
    """Clips on the sample grid of the report."""

    def __post_init__(self) -> None:
        if self.clips < 2 or min(self.batch, self.frames, self.steps, self.show) < 1:
            raise ValueError(f"clips must be at least 2, batch, frames, steps and show at least 1, found {self}")

    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """See `fewstep.bench.Task`.

        Raises:
            UnsupportedModelError: the model is no Wan pipeline of panning worlds.
        """
        pipe = checked(loaded.model)
        scenes = draw_scenes(self.clips, generator)
        shape = wan.architecture(pipe).latent(self.frames, SIDE, SIDE)
        start = torch.randn(self.clips, *shape, generator=generator)
        began = time.perf_counter()
        made = torch.cat([self._make(pipe, scenes, start, at) for at in range(0, self.clips, self.batch)])
        seconds = (time.perf_counter() - began) / self.clips
        return Outcome(
            seconds={"clip": seconds},
            quality={
                **measures.agreement(made, scenes),
                **measures.steadiness(made),
                "kernel_distance": measures.kernel_distance(pipe.vae, made, _real(self.split, self.frames)),
            },
            counts={"frames_per_second": self.frames / seconds},
            evidence=made,
            samples=(_sample("; ".join(scene.prompt() for scene in scenes[: self.show]), made[: self.show]),),
        )

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """No metrics: a student makes other clips from the same noise."""
        return {}

    def small(self) -> Worlds:
        """The same with two clips and two steps."""
        return replace(self, clips=2, batch=2, steps=2)

    def _make(self, pipe: Any, scenes: list[Any], start: Tensor, at: int) -> measures.Frames:
        some = slice(at, at + self.batch)
        out = pipe(
            [scene.prompt() for scene in scenes[some]],
            num_frames=self.frames,
            height=SIDE,
            width=SIDE,
            latents=start[some],
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            max_sequence_length=model.TOKENS,
            generator=torch.Generator().manual_seed(at),
            output_type="pt",
        )
        return out.frames.float().cpu()


@dataclass(frozen=True, kw_only=True)
class WorldsContinuation:
    """Go on with clips whose first chunk is true: everything after it is decided, so PSNR is against the truth.

    For causal models: ``worlds-causal-wan`` with many Euler steps, or a student of it with its own.

    Raises:
        ValueError: a number is too small.
    """

    clips: int = 32
    """Number of clips."""
    batch: int = 8
    """Clips that are made at once."""
    steps: int = 20
    """Steps of the unchanged model; a few-step student makes its own number."""
    split: Split = "held-out"
    """``tuning``: worlds to choose settings on; ``held-out``: worlds to measure on."""
    show: int = 4
    """Clips on the sample grid of the report."""

    def __post_init__(self) -> None:
        if min(self.clips, self.batch, self.steps, self.show) < 1:
            raise ValueError(f"clips, batch, steps and show must be at least 1, found {self}")

    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """See `fewstep.bench.Task`.

        Raises:
            UnsupportedModelError: the model is no Wan pipeline of panning worlds.
        """
        pipe = checked(loaded.model)
        options = options_of(pipe) or self._many_steps()
        scenes = draw_scenes(self.clips, generator)
        truth = make(scenes, self.split, generator).pixels
        given = torch.cat([data.encode(pipe.vae, part) for part in truth.split(4)])
        cond = data.Embeddings(pipe)([scene.prompt() for scene in scenes])
        began = time.perf_counter()
        made = [
            continued(pipe.transformer, part[:, :, : options.chunk], prompts, part.shape[2], options, generator)
            for part, prompts in zip(given.split(self.batch), cond.split(self.batch), strict=True)
        ]
        seconds = (time.perf_counter() - began) / self.clips
        pixels, real = wan.decode(pipe, torch.cat(made)).cpu(), truth.transpose(1, 2) / 2 + 0.5
        return Outcome(
            seconds={"clip": seconds},
            quality=self._scores(pixels, real, wan.decode(pipe, given).cpu()),
            evidence=pixels,
            samples=(_sample("; ".join(scene.prompt() for scene in scenes[: self.show]), pixels[: self.show]),),
        )

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """No metrics: both are compared with the truth."""
        return {}

    def small(self) -> WorldsContinuation:
        """The same with two clips and two steps."""
        return replace(self, clips=2, batch=2, steps=2)

    def _many_steps(self) -> StreamOptions:
        return StreamOptions(
            grid=StepGrid(even_steps(self.steps), model.SHIFT), chunk=model.CHUNK, eta=0.0, tokens=model.TOKENS
        )

    def _scores(self, made: measures.Frames, real: measures.Frames, decoded: measures.Frames) -> dict[str, float]:
        """PSNR of all continued chunks, of the last, and of the decoded truth, which no model of latents exceeds."""
        by_chunk = measures.psnr_by_chunk(made, real).mean(0)
        return {
            "psnr": by_chunk[1:].mean().item(),
            "psnr_last_chunk": by_chunk[-1].item(),
            "psnr_of_vae": measures.psnr_by_chunk(decoded, real).mean(0)[1:].mean().item(),
            **{f"psnr_chunk_{number}": value.item() for number, value in enumerate(by_chunk) if number},
        }


@functools.cache
def _real(split: Split, frames: int) -> measures.Frames:
    generator = torch.Generator().manual_seed(1)
    made = make(draw_scenes(REAL, generator), split, generator, frames=frames)
    return made.pixels.transpose(1, 2) / 2 + 0.5


def checked(pipe: Any) -> Any:
    """Return a pipeline of panning worlds.

    Raises:
        UnsupportedModelError: it is none.
    """
    config = getattr(getattr(pipe, "transformer", None), "config", {})
    if type(pipe).__name__ != "WanPipeline" or pipe.vae is None or config["text_dim"] != model.TEXT_WIDTH:
        raise UnsupportedModelError("this task needs worlds-wan, worlds-causal-wan or a student of them")
    return pipe


def _sample(title: str, made: measures.Frames) -> Sample:
    """Every tenth frame of each clip, one clip a row."""
    out = io.BytesIO()
    sample_grid(made[:, ::10], scale=2).save(out, "WEBP", quality=80, method=6)
    return Sample(title=title, image=out.getvalue())
