"""`Objective`: the losses of a training method, by role and in order. `Batch`: one micro-batch for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..flow import Latent
from .conditions import first_tensor
from .roles import Roles
from .rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of one phase. All chance comes from its two generators, so that a run can be repeated."""

    cond: Any
    """Prompt embeddings ``[B, T, d]``, or the tuple of tensors that the roles' networks take."""
    uncond: Any
    """Those of the negative prompt, ``[1, T, d]``."""
    shape: tuple[int, ...]
    """Shape of one latent: ``(C, F, H, W)``."""
    generator: torch.Generator
    """Differs between micro-batches and ranks: noise, score times. On the device of the latents."""
    shared: torch.Generator
    """The same on all ranks and in all micro-batches of a phase: exit indices. On the CPU."""
    x0: Latent | None = None
    """Latents of real data; None where the student trains on its own samples."""
    micro: int = 0
    """Number of this micro-batch among those whose gradients are accumulated on this rank."""
    rollouts: list[Rollout] = field(default_factory=list)
    """Samples that an objective made for this batch, for its extra losses."""
    metrics: dict[str, Tensor | float] = field(default_factory=dict)
    """Filled by objectives, and logged beside the losses. The names must not depend on what was drawn, or ranks would
    disagree on them; NaN where there is nothing to say."""

    def __len__(self) -> int:
        return first_tensor(self.cond).shape[0]

    def normal(self, frames: int | None = None) -> Latent:
        """Fresh noise ``[B, C, F, H, W]`` in float32; of another number of frames where it is given."""
        channels, *rest = self.shape
        shape = (len(self), channels, *rest) if frames is None else (len(self), channels, frames, *rest[1:])
        if first_tensor(self.cond).device.type == "meta":  # a plan: sizes without numbers
            return torch.empty(shape, device="meta")
        return torch.randn(shape, generator=self.generator, device=self.generator.device)


class Data(Protocol):
    """Source of conditions, and for some objectives of clean latents."""

    shape: tuple[int, ...]
    """Shape of one latent: ``(C, F, H, W)``."""

    @property
    def uncond(self) -> Any:
        """Condition without a prompt, ``[1, T, d]``."""

    def draw(self, size: int, generator: torch.Generator) -> tuple[Any, Latent | None]:
        """Conditions ``[size, T, d]`` and clean latents, or None for them; all chance comes from `generator` (CPU)."""


class MetaData:
    """Data on the meta device, for dry runs: shapes without numbers."""

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        cond: tuple[int, ...] = (),
        uncond: bool = False,
        x0: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Describe the data.

        Args:
            shape: of one latent.
            cond: shape of the condition of one sample.
            uncond: there is a condition without a prompt, of the same shape.
            x0: there are clean latents too.
            dtype: of the conditions: whole numbers for tokens and labels.
        """
        self.shape, self.cond, self.x0, self.dtype = shape, cond, x0, dtype
        self.uncond = torch.empty(1, *cond, dtype=dtype, device="meta") if uncond else None

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Conditions ``[size, *cond]``, and latents ``[size, *shape]`` where there are any."""
        x0 = torch.empty(size, *self.shape, device="meta") if self.x0 else None
        return torch.empty(size, *self.cond, dtype=self.dtype, device="meta"), x0


class Objective(Protocol):
    """The loss of a training method. The loop does nothing but this, for each step::

    for role in objective.phases(step):
        parts = objective.losses(role, batch, step)
        sum(parts.values()).backward(); clip and step the role's optimiser; drop the gradients of all roles
    """

    roles: Roles

    def phases(self, step: int) -> Sequence[str]:
        """The roles that are updated in this step, in order; one may come several times. Steps count from 0."""

    def losses(self, role: str, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """Named parts whose sum is minimised for `role`; the other roles' weights get no gradient from it.

        Every phase has a batch of its own. Numbers that are only to be seen go to ``batch.metrics``.
        """


@dataclass(frozen=True)
class UpdateSchedule:
    """Ratio of critic updates to student updates, and the order in a step.

    LightX2V counts student updates: a step is one of the student and then `critic` of the critic. Self-Forcing and
    Salt count critic updates: each step is one of the critic, and every `critic`-th step (the first among them)
    updates the student before it. One run of n steps differs by the factor `critic` between the two.
    """

    critic: int = 5
    """Critic updates for each student update."""
    count: Literal["student", "critic"] = "student"
    """Whose updates a step counts."""

    def __post_init__(self) -> None:
        if self.critic < 1:
            raise ValueError(f"there must be at least one critic update for each student update, found {self.critic}")

    def phases(self, step: int) -> tuple[str, ...]:
        """The roles that step number `step` updates, in order."""
        if self.count == "student":
            return ("student", *("critic",) * self.critic)
        return ("student", "critic") if step % self.critic == 0 else ("critic",)

    def critic_updates(self, step: int) -> int:
        """Critic updates before step number `step`, in which official codes of autoregressive students count."""
        return step if self.count == "critic" else step * self.critic
