"""The semigroup defect of a student: by how much its direct and composed steps disagree, for each triple of levels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from operator import add
from typing import Any

import torch
from fewstep import flow
from fewstep.families.chunk_cache import ChunkCache
from fewstep.train.chunk_rollout import CausalStudent, ChunkPlan
from fewstep.train.roles import Role
from torch import Tensor

from .consistency import EndPoints, Latent, Velocity, end_points
from .steps import Triple, TripleSampler


@dataclass(frozen=True, kw_only=True)
class Defect:
    """Squared differences of end points, and squared lengths of the direct steps, for each triple."""

    gaps: Mapping[Triple, float]
    """``sum ||end1 - end2||^2`` over the samples."""
    moves: Mapping[Triple, float]
    """``sum ||end1 - x_s||^2`` over the samples."""

    @property
    def value(self) -> float:
        """``sum ||end1 - end2||^2 / sum ||end1 - x_s||^2`` over all triples; 0 where steps compose."""
        return sum(self.gaps.values()) / sum(self.moves.values())

    def of(self, triple: Triple) -> float:
        """The same ratio for one triple."""
        return self.gaps[triple] / self.moves[triple]

    def __add__(self, other: Defect) -> Defect:
        """The defect over the samples of both, which have the same triples."""
        return Defect(gaps=_sum(self.gaps, other.gaps), moves=_sum(self.moves, other.moves))


@torch.no_grad()
def defect_at(rays: Mapping[float, tuple[Latent, Latent]], triples: Iterable[Triple], velocity: Velocity) -> Defect:
    """The defect of a velocity on given states; the network is called once for each pair (s, m).

    Args:
        rays: ``(x_s, v_s)`` by level ``s``, for every start of a triple.
        triples: triples of levels.
        velocity: of the student.
    """
    gaps, moves = {}, {}
    known: dict[tuple[float, float], Latent] = {}

    def once(pair: tuple[float, float], noisy: Latent, level: float) -> Latent:
        if pair not in known:  # triples that differ in their end alone meet at one middle state
            known[pair] = velocity(noisy, level)
        return known[pair]

    for triple in triples:
        noisy, v_s = rays[triple.start]
        ends = end_points(noisy, v_s, triple, partial(once, triple[:2]))
        gaps[triple], moves[triple] = (value.item() for value in squares(noisy, ends))
    return Defect(gaps=gaps, moves=moves)


def squares(noisy: Latent, ends: EndPoints) -> tuple[Tensor, Tensor]:
    """``sum ||end1 - end2||^2`` and ``sum ||end1 - x_s||^2`` over the samples."""
    return (ends.direct - ends.composed).square().sum(), (ends.direct - noisy).square().sum()


@torch.no_grad()
def defect_of(
    role: Role,
    cond: Any,
    start: Latent,
    *,
    sampler: TripleSampler | None = None,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Defect:
    """The defect of a student on the states of its own rollout over the dense list.

    Args:
        role: the student.
        cond: prompt embeddings ``[B, T, d]``.
        start: noise ``[B, C, F, H, W]``.
        sampler: step list and triples; None takes those of the paper, over `fewstep_salt.steps.L8`.
        eta: transition between the levels, see `fewstep.flow.transition`.
        generator: of fresh noise; needed for ``eta > 0``.
    """
    sampler = sampler or TripleSampler()

    def velocity(noisy: Latent, level: float) -> Latent:
        return role.velocity(noisy, level, cond)

    rays, _ = _rays(start, sampler, velocity, eta, generator)
    return defect_at(rays, sampler.triples(), velocity)


@torch.no_grad()
def causal_defect_of(
    student: CausalStudent,
    plan: ChunkPlan,
    cond: Any,
    start: Latent,
    *,
    sampler: TripleSampler | None = None,
    eta: float = 1.0,
    generator: torch.Generator | None = None,
) -> Defect:
    """The defect of a causal student over all chunks, each with the cache of those that it made before.

    Args:
        student: its network was made causal.
        plan: chunks and cache.
        cond: prompt embeddings ``[B, T, d]``.
        start: noise ``[B, C, F, H, W]``.
        sampler: step list and triples; None takes those of the paper, over `fewstep_salt.steps.L8`.
        eta: transition between the levels, see `fewstep.flow.transition`.
        generator: of fresh noise; needed for ``eta > 0``.
    """
    sampler, cache = sampler or TripleSampler(), ChunkCache(plan.policy)
    defects = []
    for noise in start.split(plan.chunk, 2):
        velocity = partial(student.velocity, cond=cond, cache=cache)
        rays, clean = _rays(noise, sampler, velocity, eta, generator)
        defects.append(defect_at(rays, sampler.triples(), velocity))
        cache = student.commit(clean, cond, cache)
    return reduce(add, defects)


def _rays(
    noisy: Latent, sampler: TripleSampler, velocity: Velocity, eta: float, generator: torch.Generator | None
) -> tuple[dict[float, tuple[Latent, Latent]], Latent]:
    """State and velocity at each level of a rollout over the dense list, and where it ends."""
    rays = {}
    for level, following in pairwise((*sampler.grid.sigmas.tolist(), 0.0)):
        predicted = velocity(noisy, level)
        rays[level] = noisy, predicted
        noisy = flow.transition(noisy, predicted, level, following, eta if following else 0.0, generator)
    return rays, noisy


def _sum(one: Mapping[Triple, float], other: Mapping[Triple, float]) -> dict[Triple, float]:
    return {triple: one[triple] + other[triple] for triple in one}
