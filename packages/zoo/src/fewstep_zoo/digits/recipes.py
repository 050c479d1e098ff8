"""Training recipes of the teacher and the judge of moving digits; each takes minutes on two cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fewstep.train.flow_matching import FlowMatching
from fewstep.train.objective import Batch, MetaData
from fewstep.train.optim import AdamW, Muon
from fewstep.train.parallel import World
from fewstep.train.recipe import Job, Recipe, free
from fewstep.train.roles import Role, Roles
from torch import Tensor
from torch.nn import functional as F

from . import clips, model
from .data import LabelledClips, PromptedClips, Prompts
from .judge import DigitsJudge
from .sample_grid import sample_grid

FRAME_WEIGHT = 0.5
"""Weight of the loss of single frames beside those of whole clips."""


@dataclass(frozen=True, kw_only=True)
class Teacher(Recipe):
    """Flow matching on clips of real digits, with prompts that leave things open or are dropped."""

    steps: int = 12000
    batch: int = 32
    clip: float = 1.0
    ema: float = 0.998
    save_every: int = free(500)
    sample_every: int = free(1000)
    student: Muon = Muon(lr=6e-3, betas=(0.9, 0.99), warmup=100, schedule="cosine")
    """Optimiser."""
    shift: float = model.SHIFT
    """Time shift of the noise levels."""
    drop: float = 0.1
    """Share of the clips whose prompt is dropped."""
    open: float = 0.2
    """Chance that a prompt leaves the direction open; independently, the speed."""
    show: int = free(24)
    """Clips on a sample grid."""

    def build(self, world: World) -> Job:
        pipe = model.pipeline(model.transformer(self.seed).train().to(world.device))
        data = PromptedClips(prompts=Prompts(pipe), open=self.open)
        return Job(objective=self._objective(pipe.transformer), data=data, pipe=pipe)

    def skeleton(self) -> Job:
        with torch.device("meta"):
            network = model.transformer(self.seed)
        data = MetaData(clips.SHAPE, cond=(model.TOKENS, model.TEXT_WIDTH), uncond=True, x0=True)
        return Job(objective=self._objective(network), data=data)

    def _objective(self, network: Any) -> FlowMatching:
        return FlowMatching(roles=Roles(student=Role(network)), shift=self.shift, drop=self.drop)

    def optimisers(self) -> Mapping[str, AdamW]:
        return {"student": self.student}

    @torch.no_grad()
    def sample_grid(self, job: Job) -> Any:
        generator = torch.Generator().manual_seed(self.seed)
        prompts = [label.prompt() for label in clips.draw_labels(self.show, generator)]
        start = torch.randn(self.show, *clips.SHAPE, generator=generator)
        return sample_grid(model.make(job.pipe, prompts, start))

    def finish(self, job: Job, network: torch.nn.Module, folder: Path) -> None:
        job.pipe.transformer = network
        job.pipe.save_pretrained(folder)

    def what_is_saved(self) -> str:
        return "a diffusers pipeline folder without a VAE"


@dataclass(frozen=True, kw_only=True)
class Judge(Recipe):
    """Classification of clips of real digits: digit, direction, speed, and the digit of each single frame."""

    steps: int = 600
    batch: int = 128
    clip: float = 10.0
    student: AdamW = AdamW(lr=3e-3, betas=(0.9, 0.999), warmup=50, schedule="cosine")
    """Optimiser."""

    def build(self, world: World) -> Job:
        torch.manual_seed(self.seed)
        return Job(objective=_judging(DigitsJudge().train().to(world.device)), data=LabelledClips())

    def skeleton(self) -> Job:
        with torch.device("meta"):
            return Job(
                objective=_judging(DigitsJudge().train()),
                data=MetaData(clips.SHAPE, cond=(3,), x0=True, dtype=torch.int64),
            )

    def optimisers(self) -> Mapping[str, AdamW]:
        return {"student": self.student}

    def finish(self, job: Job, network: torch.nn.Module, folder: Path) -> None:
        network.eval().save_pretrained(folder)  # type: ignore[operator]

    def what_is_saved(self) -> str:
        return "the judge's network in diffusers' format"


def _judging(network: DigitsJudge) -> Classification:
    return Classification(roles=Roles(student=Role(network)))


@dataclass(eq=False, kw_only=True)
class Classification:
    """Cross entropy of all outputs of `DigitsJudge`; conditions are labels ``[B, 3]``."""

    roles: Roles
    """``student``: the judge."""

    def phases(self, step: int) -> tuple[str, ...]:
        return ("student",)

    def losses(self, role: str, batch: Batch, step: int) -> Mapping[str, Tensor]:
        digit, direction, speed = batch.cond.long().unbind(1)
        verdict = self.roles.student.network(batch.x0)
        in_frames = digit[:, None].expand(verdict.frame_digit.shape[:2])
        return {
            "digit": F.cross_entropy(verdict.digit, digit),
            "direction": F.cross_entropy(verdict.direction, direction),
            "speed": F.cross_entropy(verdict.speed, speed),
            "frame": FRAME_WEIGHT * F.cross_entropy(verdict.frame_digit.flatten(0, 1), in_frames.flatten()),
        }
