"""`SGMDObjective`, on the roles, rollout and schedule of DMD2, and the baseline `SiD`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from fewstep import flow
from fewstep.flow import Latent
from fewstep.train.dmd2 import DMD2
from fewstep.train.objective import Batch, UpdateSchedule
from fewstep.train.roles import guided
from fewstep.train.rollout import Rollout
from torch import Tensor

from .loss import Weights, critic_loss, figures, sid_loss, student_losses


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Settings of an extra loss of the official code, which the paper lacks.

    The student's first step follows the teacher's first steps.

    Raises:
        ValueError: a field is out of range.
    """

    weight: float = 0.05
    """Factor of the loss; 0 leaves it out."""
    anchor: int = 5
    """Steps that the guided teacher makes."""
    steps: int = 30
    """Steps of the teacher from noise to data, of which the anchor counts the first."""
    shift: float = 5.0
    """Shift of the teacher's steps."""

    def __post_init__(self) -> None:
        if not 0 < self.anchor <= self.steps or self.weight < 0:
            raise ValueError(f"a diversity loss needs weight >= 0 and 0 < anchor <= steps, found {self}")

    @property
    def levels(self) -> list[float]:
        """Noise levels from 1 to that of the anchor."""
        return [flow.shift(1 - i / self.steps, self.shift) for i in range(self.anchor + 1)]


@dataclass(frozen=True)
class NoisedSample:
    """A sample of the student with the noise and the level at which critic and teacher see it."""

    rollout: Rollout
    """The sample, its condition, and the noise that it began with."""
    sigma: Tensor
    """Noise levels ``[B]``."""
    eps: Latent
    """Noise ``[B, C, F, H, W]``."""

    @property
    def noisy(self) -> Latent:
        """``x_s``, in the graph of the sample."""
        return flow.noise(self.rollout.x, self.eps, self.sigma)

    def detached(self) -> NoisedSample:
        """The same without the graph."""
        rollout = replace(self.rollout, x=self.rollout.x.detach(), velocity=self.rollout.velocity.detach())
        return replace(self, rollout=rollout)


@dataclass(eq=False, kw_only=True)
class SGMDObjective(DMD2):
    """Score gradient matching distillation (SGMD, arXiv:2605.30116): one critic update for each of the student.

    The student minimises the distance between critic and teacher *through the input of the critic*, minus ``lam`` times
    the critic's tracking error; the critic minimises that error. Under ideal tracking this direction agrees with that
    of DMD (proposition 3.1). ``lam = 0`` with five critic updates is TSG-Fisher.

    Raises:
        ValueError: a field is out of range, or ``lam > 0`` with another ratio than one to one.
    """

    schedule: UpdateSchedule = field(default_factory=lambda: UpdateSchedule(critic=1))
    """Critic updates for each student update: 1, which the negative residual is made for."""
    lam: float = 0.1
    """Share of the negative residual."""
    weighting: Weights = "official"
    """``official``: that of the released code; ``paper``: the plain score difference, dangerous at low noise."""
    fake_sample: Literal["fresh", "shared"] = "fresh"
    """Data of the critic: a rollout of its own, or the student's sample, noise and level of this step."""
    ts_schedule: bool = False
    """Compare only above the noise level of the step that follows the exit step."""
    ts_schedule_max: bool = False
    """Compare only below the noise level of the exit step."""
    diversity: Diversity | None = None
    """Extra loss of the official 1.3B recipe. With it, no sample leaves at the first step, the critic's neither."""

    def __post_init__(self) -> None:
        check_ratio(self.lam, self.schedule)
        if self.diversity and len(self.grid) < 2:
            raise ValueError("a diversity loss takes the first step for itself: the grid needs two steps or more")
        self._shared: dict[int, NoisedSample] = {}

    def student_losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """``L_Fisher + lam L_NR``; the only way to the student is critic, noised sample, sample."""
        sample = self.noised_sample(batch, grad=True)
        noisy, sigma, x = sample.noisy, sample.sigma, sample.rollout.x
        critic = self.roles.critic.x0(noisy, sigma, batch.cond)
        teacher = self.teacher_x0(noisy, sigma, batch)
        parts, terms = student_losses(x, critic, teacher, sigma, lam=self.lam, weights=self.weighting)
        if not x.is_meta:  # a plan has sizes without numbers
            batch.metrics.update(figures(terms, sigma.to(x.device)))
        if self.fake_sample == "shared":
            self._shared[batch.micro] = sample.detached()
        if self.diversity:
            parts["diversity"] = self.diversity_loss(self.diversity, sample.rollout.start, batch)
        return parts

    def critic_losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Residual contraction: the critic learns to denoise the student's samples."""
        fresh = self.fake_sample == "fresh"
        sample = self.noised_sample(batch, grad=False) if fresh else self._shared.pop(batch.micro)
        predicted = self.roles.critic.velocity(sample.noisy, sample.sigma, sample.rollout.cond)
        target = flow.velocity(sample.rollout.x, sample.eps)
        return {"contraction": critic_loss(predicted, target, sample.sigma, lam=self.lam, weights=self.weighting)}

    def noised_sample(self, batch: Batch, *, grad: bool) -> NoisedSample:
        """A rollout, and noise at a level that its exit step allows."""
        rollout = self.rollout(batch, grad=grad, first=1 if self.diversity else 0)
        raw = (*self.grid.raw, 0)
        low = raw[rollout.exit + 1] if self.ts_schedule else 0
        high = raw[rollout.exit] if self.ts_schedule_max else flow.TRAIN_STEPS
        sigma = self.score_time.sample(len(batch), batch.generator, (low, high))
        return NoisedSample(rollout, sigma, batch.normal())

    def diversity_loss(self, settings: Diversity, start: Latent, batch: Batch) -> Tensor:
        """``weight mean (v_G(z, 1) - (z - x_a) / (1 - s_a))^2``, ``x_a`` from `anchor` steps of the guided teacher."""
        levels, noisy = settings.levels, start
        with torch.no_grad():
            for sigma, following in zip(levels, levels[1:], strict=False):
                velocity = guided(self.roles.teacher, noisy, sigma, batch.cond, batch.uncond, self.guidance)
                noisy = flow.euler(noisy, velocity, sigma, following)
        chord = (start - noisy) / (1 - levels[-1])
        return settings.weight * (self.roles.student.velocity(start, 1.0, batch.cond) - chord).square().mean()


def check_ratio(lam: float, schedule: UpdateSchedule) -> None:
    """Refuse ratios of updates that the negative residual is not made for.

    Raises:
        ValueError: `lam` is negative, or positive with another ratio than one to one.
    """
    if lam < 0:
        raise ValueError(f"lam is {lam}; a negative one pushes samples away from the critic and diverges")
    if lam and (schedule.critic, schedule.count) != (1, "student"):
        raise ValueError("SGMD updates critic and student one to one; other ratios need lam=0, which is TSG-Fisher")


@dataclass(eq=False, kw_only=True)
class SiD(DMD2):
    """Score identity distillation (SiD, arXiv:2404.04057) in the loop of DMD2, a baseline of SGMD.

    With ``through_teacher=False`` and one critic update it is what we take TSG-SIM of the SGMD paper to be.
    """

    alpha: float = 1.0
    """Strength of the correction for a critic that lags."""
    through_teacher: bool = True
    """Let gradients pass through the teacher to its input."""

    def student_losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """`sid_loss`, with gradients through sample, critic and, where asked for, teacher."""
        rollout = self.rollout(batch, grad=True)
        sigma, eps = self.score_time.sample(len(batch), batch.generator), batch.normal()
        noisy = flow.noise(rollout.x, eps, sigma)
        critic = self.roles.critic.x0(noisy, sigma, batch.cond)
        if self.through_teacher:
            velocity = guided(self.roles.teacher, noisy, sigma, batch.cond, batch.uncond, self.guidance)
            teacher = flow.x0_from_velocity(noisy, velocity, sigma)
        else:
            teacher = self.teacher_x0(noisy, sigma, batch)
        return {"sid": sid_loss(rollout.x, critic, teacher, alpha=self.alpha)}
