"""The two extra losses of Salt, self-consistency and alignment, for every objective that trains on rollouts.

Each is made for chunk-wise rollouts too: `SemigroupLoss.of` and `AlignmentLoss.alignment` know of samples only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import get_args

import torch
from fewstep.flow import Latent, StepGrid
from fewstep.train.objective import Batch
from fewstep.train.roles import Roles
from fewstep.train.rollout import Rollout, rollout
from torch import Tensor

from .alignment import Alignment, make_alignment
from .consistency import SemigroupTarget, SemigroupWeight, Velocity, end_points, semigroup_loss
from .steps import StepMix, Triple, TripleSampler

Piece = tuple[Latent, Latent, Velocity]
"""``(x_s, v_s, velocity)`` of one forward at the exit step: a whole sample, or one chunk with its cache."""


@dataclass(frozen=True, kw_only=True)
class SemigroupLoss:
    """Self-consistency of the student at its exit step, for samples of the dense list (SC, arXiv 2604.03118).

    It costs one more forward of the student, without gradient; the forward with gradient is that of the sample itself.
    Weights above 0.2 without ``1 - s`` diverged: the target is the student.

    Raises:
        ValueError: the scale is negative, or a name is unknown.
    """

    scale: float = 0.2
    """``lambda_sc``."""
    sampler: TripleSampler = field(default_factory=TripleSampler)
    """Triples; samples of other lists than its own have no such loss."""
    weight: SemigroupWeight = "one-minus-s"
    """Weight of a triple: ``1 - s``, or 1."""
    target: SemigroupTarget = "latent"
    """Compare end points, or the mean velocities to them."""

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise ValueError(f"the scale of a semigroup loss must be 0 or more, found {self.scale}")
        for name, known in (("weight", get_args(SemigroupWeight)), ("target", get_args(SemigroupTarget))):
            if getattr(self, name) not in known:
                raise ValueError(f"no {name} is called {getattr(self, name)!r}; there are {', '.join(known)}")

    def draw(self, grid: StepGrid, exit: int, generator: torch.Generator) -> Triple | None:
        """The triple of this step, the same on all ranks; None for other lists and for the last exit step.

        Args:
            grid: list that the sample was made with.
            exit: index of its exit step.
            generator: the same on all ranks, after the exit was drawn from it.
        """
        return self.sampler.draw(exit, generator) if grid == self.sampler.grid else None

    def of(self, triple: Triple, pieces: Iterable[Piece]) -> Tensor:
        """The loss of one triple over all pieces of a sample: chunks of a video have velocities of their own."""
        ends = [end_points(noisy, v_s, triple, velocity) for noisy, v_s, velocity in pieces]
        direct, composed = (torch.cat(parts, 2) for parts in zip(*ends, strict=True))
        return self.scale * semigroup_loss(direct, composed, triple, weight=self.weight, target=self.target)

    def __call__(self, roles: Roles, sample: Rollout, batch: Batch, step: int) -> Tensor | None:
        """See `fewstep.train.extra.ExtraLoss`."""
        triple = self.draw(sample.grid, sample.exit, batch.shared)
        moved = sample.moved
        return None if triple is None else self.of(triple, [(moved.noisy, moved.velocity, moved.again)])


@dataclass(frozen=True, kw_only=True)
class AlignmentLoss:
    """Distance of a sample from a reference of the same student in more steps (TRD and others, arXiv 2604.03118).

    The reference begins with the noise of the sample and goes to its exit level on the next denser list. All lists
    begin with pure noise, so that a sample of the first exit step is its own reference and has no such loss.

    Raises:
        ValueError: scale or start is negative.
    """

    scale: float = 0.1
    """Weight of the loss."""
    alignment: Alignment = field(default_factory=make_alignment)
    """Distance."""
    mix: StepMix = field(default_factory=StepMix)
    """Lists among which the denser one is found; the densest has no such loss."""
    eta: float = 0.0
    """Transition of the reference, that of the sample; see `fewstep.flow.transition`."""
    start: int = 700
    """Steps of the objective before it begins; 700 critic steps (``count="critic"``) in the paper's first recipe."""

    def __post_init__(self) -> None:
        if self.scale < 0 or self.start < 0:
            raise ValueError(f"scale and start of an alignment must be 0 or more, found {self.scale} and {self.start}")

    def reference_grid(self, grid: StepGrid, exit: int, step: int) -> StepGrid | None:
        """Step list of the reference; None where this sample or step has none."""
        return self.mix.denser(grid) if exit and step >= self.start else None

    def __call__(self, roles: Roles, sample: Rollout, batch: Batch, step: int) -> Tensor | None:
        """See `fewstep.train.extra.ExtraLoss`."""
        grid = self.reference_grid(sample.grid, sample.exit, step)
        if grid is None:
            return None
        exit = grid.raw.index(sample.grid.raw[sample.exit])
        how = {"grad": False, "eta": self.eta, "generator": batch.generator}
        reference = rollout(roles.student, grid, sample.cond, sample.start, exit, **how)
        return self.scale * self.alignment(roles.teacher, sample.x, reference.x, batch)
