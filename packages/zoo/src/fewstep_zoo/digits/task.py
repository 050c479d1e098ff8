"""Tasks of moving digits: ``moving-digits`` times and scores clips, ``time-to-quality`` compares trainings."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from fewstep.bench import Outcome, Sample, TrainingTask
from fewstep.contract import Loaded
from fewstep.errors import UnsupportedModelError
from fewstep.roofline import Measured, Workload
from jaxtyping import Float
from torch import Tensor

from . import clips, measures, model
from .judge import DigitsJudge
from .load import shared_judge
from .sample_grid import animation, png, sample_grid
from .words import Label

REAL = 4096
"""Number of real clips whose features are compared with."""


@dataclass(frozen=True, kw_only=True)
class MovingDigits:
    """Make clips of moving digits and score them; for `digits-wan` and its students.

    Raises:
        ValueError: a number is too small.
    """

    clips: int = 256
    """Number of clips, with prompts drawn like those of training."""
    batch: int = 32
    """Clips that are made at once; 1 is what a single user waits for."""
    steps: int = model.STEPS
    """Steps of the unchanged model; a few-step student makes its own number."""
    guidance: float = model.GUIDANCE
    """Guidance scale of the unchanged model; a student makes none."""
    show: int = 24
    """Clips on the animated sample grid of the report."""

    def __post_init__(self) -> None:
        if self.clips < 2 or min(self.batch, self.steps, self.show) < 1:
            raise ValueError(f"clips must be at least 2, batch, steps and show at least 1, found {self}")

    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """See `fewstep.bench.Task`.

        Raises:
            UnsupportedModelError: the model is no Wan pipeline whose latents are moving digits.
        """
        pipe = _checked(loaded.model)
        labels = clips.draw_labels(self.clips, generator)
        start = torch.randn(self.clips, *clips.SHAPE, generator=generator)
        calls: list[int] = []
        counter = pipe.transformer.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(len(kwargs["hidden_states"])), with_kwargs=True
        )
        try:
            began = time.perf_counter()
            made = torch.cat([self._make(pipe, labels, start, at) for at in range(0, self.clips, self.batch)])
            seconds = (time.perf_counter() - began) / self.clips
        finally:
            counter.remove()
        return Outcome(
            seconds={"clip": seconds},
            quality=assess(shared_judge(), made, labels),
            counts={"network_calls": sum(calls) / self.clips},
            evidence=made,
            samples=self._samples(made, labels),
        )

    def measured(self) -> Measured:
        """One batch of clips."""
        _, frames, height, width = clips.SHAPE
        work = Workload(
            frames=frames,
            height=height,
            width=width,
            steps=self.steps,
            guidance=self.guidance,
            text_tokens=model.TOKENS,
            batch=self.batch,
        )
        return Measured(work=work, phases={"clip": ""}, requests=self.batch)

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """No metrics: a student makes other clips from the same noise."""
        return {}

    def small(self) -> MovingDigits:
        """The same with four clips and two steps."""
        return replace(self, clips=4, batch=4, steps=2)

    def _make(self, pipe: Any, labels: list[Label], start: Tensor, at: int) -> Tensor:
        some = slice(at, at + self.batch)
        prompts = [label.prompt() for label in labels[some]]
        return model.make(pipe, prompts, start[some], steps=self.steps, guidance=self.guidance)

    def _samples(self, made: Tensor, labels: list[Label]) -> tuple[Sample, ...]:
        prompts = ", ".join(label.prompt() for label in labels[: self.show])
        return (
            Sample(title=f"moving: {prompts}", image=animation(made[: self.show])),
            Sample(title="frame by frame", image=png(sample_grid(made[: self.show]))),
        )


@dataclass(frozen=True, kw_only=True)
class TimeToQuality(TrainingTask):
    """Seconds of training until the best Frechet distance that the baseline reaches, on moving digits."""

    metric = "frechet"
    clips: int = 512
    """Clips that each scoring makes."""

    def scorer(self) -> MovingDigits:
        return MovingDigits(clips=self.clips, batch=64)


@torch.no_grad()
def assess(judge: DigitsJudge, pixels: Float[Tensor, "b 1 f h w"], labels: list[Label]) -> dict[str, float]:
    """Compute all metrics of `measures`, and the judge's accuracy against the labels that were asked for."""
    verdict = judge(pixels)
    right = verdict.right(labels)
    return {
        "accuracy": right.prod(1).mean().item(),
        "digit_accuracy": right[:, 0].mean().item(),
        "frechet": measures.frechet(verdict.features, _real_features()),
        **measures.motion(pixels),
        **measures.consistency(judge, pixels),
        "noise": measures.noise(pixels).mean().item(),
    }


@functools.cache
@torch.no_grad()
def _real_features() -> Float[Tensor, "n d"]:
    """Features of real clips with labels as in training."""
    source = torch.Generator().manual_seed(0)
    pixels = clips.make(clips.draw_labels(REAL, source), "train", source).pixels
    return torch.cat([shared_judge()(part).features for part in pixels.split(64)])  # faster than all at once


def _checked(pipe: Any) -> Any:
    network = getattr(pipe, "transformer", None)
    channels = getattr(getattr(network, "config", None), "in_channels", None)
    if type(network).__name__ != "WanTransformer3DModel" or pipe.vae is not None or channels != 1:
        raise UnsupportedModelError("moving-digits needs digits-wan or a student of it: a WanPipeline without a VAE")
    return pipe
