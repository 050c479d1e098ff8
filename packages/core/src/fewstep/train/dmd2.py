"""DMD2, distribution matching distillation with backward simulation: the baseline of the few-step methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import flow
from ..flow import Latent, ScoreTime, StepGrid
from .extra import ExtraLoss, counted
from .objective import Batch, UpdateSchedule
from .roles import Roles, guided
from .rollout import ExitIndex, Rollout, draw_exit, rollout


def dmd_gradient(x: Latent, critic: Latent, teacher: Latent) -> Latent:
    """Compute the direction in which the student's sample is moved (DMD2, arXiv 2405.14867; normaliser of DMD, eq. 8).

        g = (u - T) / n        n = mean over all dimensions of a sample of |x - T|

    with the x0 predictions ``u`` of the critic and ``T`` of the guided teacher at one noise level. Where ``n`` is
    zero the direction is zero. No gradient.
    """
    with torch.no_grad():
        n = (x - teacher).abs().flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))
        return torch.nan_to_num((critic - teacher) / n)


def dmd_loss(x: Latent, direction: Latent) -> Tensor:
    """``1/2 mean (x - sg[x - g])^2``, whose gradient with respect to ``x`` is ``g / N``."""
    return 0.5 * (x - (x - direction).detach()).square().mean()


@dataclass(eq=False, kw_only=True)
class DMD2:
    """Reverse KL between student and teacher at random noise levels; the critic learns the student's score.

    Methods that share roles, rollout and critic override `student_losses` and, where they differ, the rest.
    """

    roles: Roles
    """``student`` and ``critic``, trained, and ``teacher``."""
    grid: StepGrid = field(default_factory=StepGrid)
    """Levels of the student."""
    score_time: ScoreTime = field(default_factory=ScoreTime)
    """Levels at which critic and teacher are compared, and the critic is trained."""
    guidance: float = 3.0
    """``w`` of the teacher's classifier-free guidance; student and critic have none."""
    eta: float = 0.0
    """Transition between the student's levels; see `fewstep.train.rollout.rollout`."""
    schedule: UpdateSchedule = field(default_factory=UpdateSchedule)
    """Critic updates for each student update."""

    exit_index: ExitIndex = "update"
    """One exit index for all micro-batches whose gradients are accumulated, or for each its own."""
    extra: Mapping[str, ExtraLoss] = field(default_factory=dict)
    """Further losses of the student's sample, by the names under which they are logged."""

    def phases(self, step: int) -> tuple[str, ...]:
        return self.schedule.phases(step)

    def losses(self, role: str, batch: Batch, step: int) -> Mapping[str, Tensor]:
        if role != "student":
            return self.critic_losses(batch, step)
        parts = self.student_losses(batch, step)
        extra = {name: loss(self.roles, batch.rollouts[-1], batch, step) for name, loss in self.extra.items()}
        return {**parts, **counted(extra, batch)}

    def student_losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Move fresh samples of the student; see `matching_loss`."""
        return {"dmd": self.matching_loss(self.rollout(batch, grad=True).x, batch)}

    def matching_loss(self, x: Latent, batch: Batch, *, given: int = 0) -> Tensor:
        """Move samples along `dmd_gradient`; critic and teacher are asked about the same noised samples.

        Args:
            x: samples of the student, in its graph.
            batch: their conditions, and all chance.
            given: first frames of a video that critic and teacher see, but that are not moved.
        """
        sigma, eps = self.score_time.sample(len(batch), batch.generator), batch.normal()
        with torch.no_grad():
            noisy = flow.noise(x, eps, sigma)
            critic = self.roles.critic.x0(noisy, sigma, batch.cond)
            direction = dmd_gradient(x, critic, self.teacher_x0(noisy, sigma, batch))
        return dmd_loss(x[:, :, given:], direction[:, :, given:])

    def critic_losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Ordinary denoising of fresh samples of the student: ``mean (v - (eps - x))^2``."""
        return {"velocity": self.denoising_loss(self.rollout(batch, grad=False).x, batch)}

    def denoising_loss(self, x: Latent, batch: Batch) -> Tensor:
        """Velocity error of the critic on samples ``x`` of the student, at random noise levels."""
        sigma, eps = self.score_time.sample(len(batch), batch.generator), batch.normal()
        predicted = self.roles.critic.velocity(flow.noise(x, eps, sigma), sigma, batch.cond)
        return (predicted - flow.velocity(x, eps)).square().mean()

    def rollout(self, batch: Batch, *, grad: bool, first: int = 0) -> Rollout:
        """A sample of the student with an exit index of its own, from ``first..K-1``."""
        number = batch.micro if self.exit_index == "micro-batch" else 0
        exit = draw_exit(self.grid, batch.shared, first, number)
        batch.metrics["exit"] = float(exit)
        start = batch.normal()
        student = self.roles.student
        how = {"grad": grad, "eta": self.eta, "generator": batch.generator}
        batch.rollouts.append(rollout(student, self.grid, batch.cond, start, exit, **how))
        return batch.rollouts[-1]

    @torch.no_grad()
    def teacher_x0(self, noisy: Latent, sigma: Tensor, batch: Batch) -> Latent:
        """Predict x0 by the guided teacher, without gradient to anything."""
        velocity = guided(self.roles.teacher, noisy.detach(), sigma, batch.cond, batch.uncond, self.guidance)
        return flow.x0_from_velocity(noisy.detach(), velocity, sigma)
