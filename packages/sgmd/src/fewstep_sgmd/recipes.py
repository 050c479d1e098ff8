"""Training recipes: SGMD on the digits of the zoo and on Wan, with its baselines and ablations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fewstep.families import wan
from fewstep.train.objective import Objective
from fewstep.train.optim import AdamW
from fewstep.train.roles import Roles
from fewstep.train.student_recipe import StudentRecipe

from .loss import Weighting
from .method import SGMD
from .objective import Diversity, SGMDObjective, SiD, check_ratio

DIGITS_PROMPTS = Path(__file__).with_name("prompts") / "digits.txt"
"""Prompts of moving digits; three in ten of those that name a speed are fast."""

NEGATIVE = "镜头晃动，" + wan.NEGATIVE
"""Negative prompt of the official recipes: against a shaking camera, then the one that Wan was released with."""


@dataclass(frozen=True, kw_only=True)
class SGMDStudent(StudentRecipe):
    """Distillation whose student `SGMD` runs."""

    def method(self) -> SGMD:
        return SGMD(steps=self.raw_steps, shift=self.shift, size=(self.frames, self.height, self.width))


@dataclass(frozen=True, kw_only=True)
class SGMDRecipe(SGMDStudent):
    """SGMD (arXiv:2605.30116): one critic update for each student update; ``lam=0`` is TSG-Fisher."""

    critic_updates: int = 1
    """Critic updates for each student update; more than 1 only with ``lam=0``."""
    lam: float = 0.1
    """Share of the negative residual: more of it holds samples closer to what the critic explains, with less motion."""
    weighting: Weighting = "official"
    """``official``, or ``paper``: the plain score difference, dangerous at low noise."""
    fake_sample: Literal["fresh", "shared"] = "fresh"
    """Data of the critic: a rollout of its own, or the student's sample of this step, which saves one."""
    ts_schedule: bool = False
    """Compare only above the noise level of the step that follows the exit step."""
    ts_schedule_max: bool = False
    """Compare only below the noise level of the exit step."""
    diversity: float = 0.0
    """Weight of the diversity loss: the student's first step follows the teacher's first steps."""
    diversity_anchor: int = 5
    """Steps of the teacher that it follows."""
    diversity_steps: int = 30
    """Steps of the teacher from noise to data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio(self.lam, self.schedule)

    def objective(self, roles: Roles) -> Objective:
        settings = {"anchor": self.diversity_anchor, "steps": self.diversity_steps, "shift": self.shift}
        return SGMDObjective(
            **self.shared(roles),
            lam=self.lam,
            weighting=self.weighting,
            fake_sample=self.fake_sample,
            ts_schedule=self.ts_schedule,
            ts_schedule_max=self.ts_schedule_max,
            diversity=Diversity(weight=self.diversity, **settings) if self.diversity else None,
        )


@dataclass(frozen=True, kw_only=True)
class SiDRecipe(SGMDStudent):
    """Score identity distillation (arXiv:2404.04057) in the same loop, a baseline."""

    critic_updates: int = 1
    """Critic updates for each student update."""
    alpha: float = 1.0
    """Strength of the correction for a critic that lags."""
    through_teacher: bool = False
    """Let gradients pass through the teacher to its input; without it, and 1:1, this stands for TSG-SIM."""

    def objective(self, roles: Roles) -> Objective:
        return SiD(**self.shared(roles), alpha=self.alpha, through_teacher=self.through_teacher)


@dataclass(frozen=True, kw_only=True)
class DMD2StudentRecipe(SGMDStudent):
    """DMD2 (arXiv:2405.14867), the baseline: five critic updates for each student update."""


DIGITS: dict[str, Any] = {
    "teacher": "digits-wan",
    "prompts": DIGITS_PROMPTS,
    "negative": "",
    "tokens": 8,
    "frames": 21,
    "height": 128,
    "width": 128,
    "guidance": 2.0,
    "steps": 200,
    "batch": 32,
    "student": AdamW(lr=2e-5),
    "critic": AdamW(lr=2e-5),
    "save_every": 100,
    "sample_every": 100,
    "show": 8,
}
"""Fields that all arms on moving digits share; 21 frames of 128 pixels are 6 latent frames of 16 pixels."""


def sgmd_digits() -> SGMDRecipe:
    """SGMD on moving digits."""
    return SGMDRecipe(**DIGITS)


def tsg_fisher_digits() -> SGMDRecipe:
    """The Fisher part alone, with five critic updates for each student update."""
    return SGMDRecipe(**DIGITS, lam=0.0, critic_updates=5)


def sid_digits() -> SiDRecipe:
    """SiD on moving digits, one to one and with the teacher detached, which we take TSG-SIM to be."""
    return SiDRecipe(**DIGITS)


def dmd2_digits() -> DMD2StudentRecipe:
    """DMD2 on moving digits; ``--critic-updates 1`` is its one-to-one arm."""
    return DMD2StudentRecipe(**DIGITS)


def sgmd_wan_1_3b() -> SGMDRecipe:
    """The official recipe for Wan2.1-T2V-1.3B."""
    return SGMDRecipe(
        teacher="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        prompts=Path("prompts.txt"),
        negative=NEGATIVE,
        steps=1000,
        batch=2,
        precision="bfloat16",
        recompute=True,
        diversity=0.05,
        exit_index="micro-batch",
    )


def sgmd_wan_14b() -> SGMDRecipe:
    """The official recipe for Wan2.1-T2V-14B."""
    large = {"teacher": "Wan-AI/Wan2.1-T2V-14B-Diffusers", "steps": 5000, "batch": 1, "accumulate": 4}
    return replace(sgmd_wan_1_3b(), **large, diversity=0.0)


def sgmd_wan_5b() -> SGMDRecipe:
    """The official recipe for Wan2.2-TI2V-5B, from prompts alone."""
    video = {"frames": 121, "height": 704, "width": 1280}
    return replace(sgmd_wan_14b(), teacher="Wan-AI/Wan2.2-TI2V-5B-Diffusers", **video)
