"""Backward simulation: the student makes its own training inputs, from noise down to an exit step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .. import flow
from ..flow import Latent, StepGrid
from .parallel import broadcast
from .roles import Role

ExitIndex = Literal["update", "micro-batch"]
"""Samples that share an exit index: all of one update, or those of one micro-batch, on all ranks."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One simulated sample of a few-step student, left at the exit step; everything a loss may ask about it."""

    x: Latent
    """The x0 prediction at the exit step; carries the gradient where one was asked for."""
    noisy: Latent
    """Input of the student at the exit step, without gradient."""
    velocity: Latent
    """Prediction of the student there."""
    sigma: float
    """Noise level of the exit step."""
    exit: int
    """Index of the exit step in the grid."""
    grid: StepGrid
    """Levels that it was made with."""
    cond: Any
    """Condition of the sample."""
    start: Latent
    """The noise it began with."""
    student: Role
    """Student that made it."""

    @property
    def given(self) -> int:
        """First frames of the sample that only tell what came before, and that no loss moves."""
        return 0

    @property
    def moved(self) -> Rollout:
        """The sample without its given frames."""
        return self

    def again(self, noisy: Latent, sigma: float) -> Latent:
        """Velocity of the student for this sample, with all that it was given, at another input and level."""
        return self.student.velocity(noisy, sigma, self.cond)


def draw_exit(grid: StepGrid, generator: torch.Generator, first: int = 0, number: int = 0) -> int:
    """An exit index, uniform over ``first..K-1`` and the same on all ranks: that of rank 0.

    Ranks with different indices would run different numbers of forward passes, which sharded networks cannot.

    Args:
        grid: of K levels.
        generator: new for each call.
        first: lowest index.
        number: of the draw that is returned, from 0: those before it are for other micro-batches.
    """
    return broadcast(int(torch.randint(first, len(grid), (number + 1,), generator=generator)[-1]))


def rollout(
    role: Role,
    grid: StepGrid,
    cond: Any,
    start: Latent,
    exit: int,
    *,
    grad: bool,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Rollout:
    """Run `role` over the levels of `grid` from noise to the exit step; only that step may have a gradient.

    Args:
        role: the student.
        grid: its levels; the first is 1.
        cond: prompt embeddings ``[B, T, d]``.
        start: noise ``[B, C, F, H, W]``.
        exit: index of the step whose x0 prediction is the sample, 0..K-1.
        grad: record the graph of the exit step.
        eta: see `fewstep.flow.transition`.
        generator: of the fresh noise; needed for ``eta > 0``.
    """
    sigmas: list[float] = grid.sigmas.tolist()
    noisy = start
    with torch.no_grad():
        for sigma, following in zip(sigmas[:exit], sigmas[1:], strict=False):
            noisy = flow.transition(noisy, role.velocity(noisy, sigma, cond), sigma, following, eta, generator)
    with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
        velocity = role.velocity(noisy, sigmas[exit], cond)
        x = flow.x0_from_velocity(noisy, velocity, sigmas[exit])
    made = {"x": x, "noisy": noisy, "velocity": velocity, "sigma": sigmas[exit], "exit": exit, "grid": grid}
    return Rollout(**made, cond=cond, start=start, student=role)


@torch.no_grad()
def sample(role: Role, grid: StepGrid, cond: Any, start: Latent) -> Tensor:
    """Sample as a user would: all Euler steps of the grid, without guidance."""
    return rollout(role, grid, cond, start, len(grid) - 1, grad=False).x
