"""Transitions of a chunk-wise rollout between noise levels: fresh noise, remembered, or that of another rollout.

A reference rollout over a denser step list shares noise with the student's, or they would differ by chance alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from .. import flow
from ..flow import Latent

Drawn = dict[tuple[int, float], Latent]
"""Noise by number of the chunk and by the level that it led to."""
ReferenceNoise = Literal["aligned-b", "aligned-a", "independent"]


class Transition(Protocol):
    """A step of one chunk to the next level."""

    def __call__(self, chunk: int, noisy: Latent, velocity: Latent, sigma: float, following: float) -> Latent:
        """``x_s'`` from ``x_s`` and the velocity there."""


@dataclass
class FreshNoise:
    """Noise from a generator for each chunk and level, remembered in `drawn`."""

    eta: float
    """See `fewstep.flow.transition`: 1 fresh noise, 0 Euler."""
    generator: torch.Generator | None = None
    """Needed for ``eta > 0``."""
    drawn: Drawn = field(default_factory=dict)

    def __call__(self, chunk: int, noisy: Latent, velocity: Latent, sigma: float, following: float) -> Latent:
        if self.eta == 0:
            return flow.euler(noisy, velocity, sigma, following)
        fresh = self.drawn[chunk, following] = self._normal(noisy)
        return flow.transition_with(noisy, velocity, sigma, following, self.eta, fresh)

    def _normal(self, like: Latent) -> Latent:
        if like.is_meta:  # a plan: sizes without numbers
            return torch.empty_like(like, dtype=torch.float32)
        device = self.generator.device if self.generator else like.device
        return torch.randn(like.shape, generator=self.generator, device=device).to(like.device)


@dataclass(frozen=True)
class AlignedAtLevels:
    """``noise_aligned_b``: at the student's levels its own noise, Euler steps to the extra ones (Causal Forcing)."""

    eta: float
    drawn: Mapping[tuple[int, float], Latent]
    """Noise of the student."""

    def __call__(self, chunk: int, noisy: Latent, velocity: Latent, sigma: float, following: float) -> Latent:
        fresh = self.drawn.get((chunk, following))
        if fresh is None:
            return flow.euler(noisy, velocity, sigma, following)
        return flow.transition_with(noisy, velocity, sigma, following, self.eta, fresh)


@dataclass(frozen=True)
class AlignedInSegments:
    """``noise_aligned_a``: on the way to a level of the student, all noise is that which the student used there."""

    eta: float
    drawn: Mapping[tuple[int, float], Latent]
    """Noise of the student."""

    def __call__(self, chunk: int, noisy: Latent, velocity: Latent, sigma: float, following: float) -> Latent:
        ahead = [level for number, level in self.drawn if number == chunk and level <= following]
        if not ahead:
            return flow.euler(noisy, velocity, sigma, following)
        return flow.transition_with(noisy, velocity, sigma, following, self.eta, self.drawn[chunk, max(ahead)])


def reference_transition(kind: ReferenceNoise, student: FreshNoise) -> Transition:
    """The transition of a reference rollout, given that of the student after its rollout.

    Raises:
        ValueError: there is no such kind.
    """
    kinds: Mapping[str, Callable[[], Transition]] = {
        "aligned-b": lambda: AlignedAtLevels(student.eta, student.drawn),
        "aligned-a": lambda: AlignedInSegments(student.eta, student.drawn),
        "independent": lambda: FreshNoise(student.eta, student.generator),
    }
    if kind not in kinds:
        raise ValueError(f"no noise of a reference is called {kind!r}; there are {', '.join(kinds)}")
    return kinds[kind]()
