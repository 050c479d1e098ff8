"""Training recipes: SC-DMD on the digits of the zoo and on Wan, with its baselines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.flow import StepGrid
from fewstep.train.dmd2 import DMD2
from fewstep.train.objective import Objective
from fewstep.train.optim import AdamW
from fewstep.train.roles import Roles
from fewstep.train.student_recipe import StudentRecipe

from .consistency import SemigroupTarget, SemigroupWeight
from .losses import SemigroupLoss
from .sc_dmd import SCDMD
from .steps import L4, L8, TripleSampler

DIGITS_PROMPTS = Path(__file__).with_name("prompts") / "digits.txt"
"""Prompts of moving digits; three in ten of those that name a speed are fast."""


@dataclass(frozen=True, kw_only=True)
class SCDMDRecipe(StudentRecipe):
    """SC-DMD (arXiv:2604.03118): DMD2 on a dense list of steps that compose; ``semigroup=0`` is DMD2 on that list."""

    raw_steps: tuple[int, ...] = L8.raw
    """Steps that the student is trained on, before the shift; they contain those of its use."""
    use_steps: tuple[int, ...] = L4.raw
    """Steps that the student is saved and shown with, before the shift."""
    semigroup: float = 0.2
    """Scale of the semigroup loss; 0 leaves it out."""
    semigroup_weight: SemigroupWeight = "one-minus-s"
    """Weight of a triple of levels: 1 - s, or one."""
    semigroup_target: SemigroupTarget = "latent"
    """Compare end points, or the mean velocities to them."""
    segments: int = 4
    """Segments of the step list whose boundaries are ends of composed steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.extra(), self.sampling_grid  # noqa: B018  # wrong values are answered at once
        if not set(self.use_steps) <= set(self.raw_steps):
            raise ValueError(f"steps of use {self.use_steps} must be among those of training {self.raw_steps}")

    @property
    def sampling_grid(self) -> StepGrid:
        return StepGrid(self.use_steps, self.shift)

    def method(self) -> SCDMD:
        return SCDMD(steps=self.use_steps, shift=self.shift, size=(self.frames, self.height, self.width))

    def extra(self) -> dict[str, SemigroupLoss]:
        """Losses beside that of DMD2."""
        if not self.semigroup:
            return {}
        sampler = TripleSampler(self.grid, self.segments)
        how = {"weight": self.semigroup_weight, "target": self.semigroup_target}
        return {"semigroup": SemigroupLoss(scale=self.semigroup, sampler=sampler, **how)}

    def objective(self, roles: Roles) -> Objective:
        return DMD2(**self.shared(roles), extra=self.extra())


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


def sc_dmd_digits() -> SCDMDRecipe:
    """SC-DMD on moving digits."""
    return SCDMDRecipe(**DIGITS)


def dmd_8_digits() -> SCDMDRecipe:
    """DMD2 on the dense list; ``--raw-steps 1000 750 500 250`` trains on the four steps of use alone."""
    return SCDMDRecipe(**DIGITS, semigroup=0.0)


def sc_dmd_wan_1_3b() -> SCDMDRecipe:
    """SC-DMD of Wan2.1-T2V-1.3B, of which no training code is released: rates and guidance are those of AR recipes."""
    return SCDMDRecipe(
        teacher="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        prompts=Path("prompts.txt"),
        guidance=4.0,
        steps=5000,
        count="critic",
        batch=1,
        student=AdamW(lr=2e-6, betas=(0.0, 0.999)),
        critic=AdamW(lr=4e-7, betas=(0.0, 0.999)),
        ema=0.99,
        ema_from=40,
        precision="bfloat16",
        recompute=True,
    )
