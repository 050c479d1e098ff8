"""Backward simulation of a causal student, chunk by chunk, each left at the exit step (Self Forcing, 2506.08009).

    for each chunk: x <- noise
        until the exit step:  v = v_G(x, s | cache),  x <- transition(x, v, s, s')
        out = x - s v                  the only forward with a gradient
        cache <- cache + keys and values of a pass over sg[out] at noise level 0

The cache carries no gradient, so chunks are independent: the forward at the exit step is computed again in the backward
pass, chunk by chunk, and no more than the activations of one chunk are ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import families, flow
from ..families import CausalDenoiser
from ..families.chunk_cache import CachePolicy, ChunkCache
from ..flow import Latent, StepGrid
from .chunk_noise import Transition
from .roles import Role
from .rollout import Rollout


class CausalCondition(NamedTuple):
    """Prompt and cache, which the network of a causal student takes beside noisy latents and levels."""

    prompt: Any
    """Prompt embeddings ``[B, T, d]``."""
    cache: ChunkCache
    """The finished chunks."""


@dataclass(eq=False)
class CausalStudent:
    """A role whose network was made causal: velocities of a chunk, and the clean pass that fills the cache.

    Raises:
        UnsupportedModelError: no `functions` were given, and the network's family makes no videos chunk by chunk.
    """

    role: Role
    """Its `predict` takes a `CausalCondition`; set here where it is None."""
    functions: CausalDenoiser | None = None
    """Calls of the network; None takes those of its model family."""
    _causal: CausalDenoiser = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._causal = self.functions or families.causal(self.role.network)
        if self.role.predict is None:
            self.role.predict = self._predict

    def velocity(self, noisy: Latent, sigma: float, cond: Any, cache: ChunkCache) -> Latent:
        """Velocity of the chunk that follows what is in `cache`."""
        return self.role.velocity(noisy, sigma, CausalCondition(cond, cache))

    def recomputed_velocity(self, noisy: Latent, sigma: float, cond: Any, cache: ChunkCache) -> Latent:
        """The same, computed again in the backward pass instead of keeping its activations."""
        return self.role.recomputed(self.role.velocity, noisy, sigma, CausalCondition(cond, cache))

    @torch.no_grad()
    def commit(self, clean: Latent, cond: Any, cache: ChunkCache) -> ChunkCache:
        """The cache after a finished chunk: a pass at exactly level 0, without gradient."""
        if clean.is_meta and cache.segments:  # a plan: all chunks are alike
            return _like_the_last(cache, clean.shape[2])
        with self.role.running(clean, cond) as (network, latent, prompt):
            return self._causal.commit(network, latent, prompt, cache)

    def _predict(self, network: nn.Module, noisy: Latent, sigma: Tensor, cond: CausalCondition) -> Latent:
        return self._causal.velocity(network, noisy, sigma, cond.prompt, cond.cache)


def _like_the_last(cache: ChunkCache, chunk: int) -> ChunkCache:
    def states(stored: tuple[Tensor, ...]) -> Tensor:
        dtype = stored[0].dtype if stored[0].is_floating_point() else torch.float32
        return torch.empty_like(cache.policy.codec.decode(stored, dtype))

    return cache.commit([(states(keys), states(values)) for keys, values in cache.segments[-1].layers], chunk)


@dataclass(frozen=True, kw_only=True)
class ChunkPlan:
    """Chunks of a training video, what they see of each other, and which of them are trained."""

    chunk: int = 3
    """Latent frames of a chunk."""
    policy: CachePolicy = CachePolicy()
    """Frames that a chunk attends to."""
    grad_frames: int | None = None
    """Last frames that are trained and scored; None: all. A longer video makes the cache that a long one would."""
    recompute: bool = True
    """Compute the exit step of each chunk again in the backward pass: the memory of one chunk, one more forward."""

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"a chunk has at least one latent frame, found {self.chunk}")
        self.policy.past(self.chunk)
        if self.grad_frames is not None and (self.grad_frames < 1 or self.grad_frames % self.chunk):
            raise ValueError(f"{self.grad_frames} trained frames do not divide into chunks of {self.chunk}")

    def first_trained(self, frames: int) -> int:
        """First trained frame of a video of `frames`.

        Raises:
            ValueError: the frames do not divide into chunks, or are fewer than those that are to be trained.
        """
        if frames % self.chunk:
            raise ValueError(f"{frames} latent frames do not divide into chunks of {self.chunk}")
        if self.grad_frames is None:
            return 0
        if self.grad_frames > frames:
            raise ValueError(f"{self.grad_frames} of {frames} latent frames cannot be trained")
        return frames - self.grad_frames


@dataclass(frozen=True, kw_only=True)
class ChunkExit:
    """One chunk at its exit step; everything a loss may ask about it."""

    index: int
    """Number of the chunk."""
    start: int
    """Its first frame."""
    sigma: float
    """Noise level of the exit step."""
    noisy: Latent
    """Input of the student there, without gradient."""
    velocity: Latent
    """Prediction of the student there; carries the gradient where one was asked for."""
    cache: ChunkCache | None
    """Chunks before, which the student saw. None where it was not kept, so that its memory is free."""

    @property
    def x0(self) -> Latent:
        """The clean prediction: the chunk as it goes into the video."""
        return flow.x0_from_velocity(self.noisy, self.velocity, self.sigma)


@dataclass(frozen=True, kw_only=True)
class ChunkRollout(Rollout):
    """A simulated video of a causal student, each chunk left at the same exit step.

    `x`, `noisy` and `velocity` are those of the trained frames, as one clip; `start` is the noise of all.
    """

    chunks: tuple[ChunkExit, ...]
    """All chunks, those that are not trained too."""
    plan: ChunkPlan
    """Chunks and cache of the rollout."""
    transition: Transition
    """Steps between its levels."""
    causal: CausalStudent
    """Student that made it."""

    @property
    def first_trained(self) -> int:
        """First frame that is trained and scored."""
        return self.start.shape[2] - self.x.shape[2]

    @property
    def trained(self) -> tuple[ChunkExit, ...]:
        """The chunks from `first_trained` on."""
        return self.chunks[self.first_trained // self.plan.chunk :]

    @property
    def given(self) -> int:
        """Frames of the first chunk of a clip that others came before."""
        return self.plan.chunk if self.first_trained else 0

    @property
    def moved(self) -> ChunkRollout:
        """The clip without its given chunk."""
        if not self.given:
            return self
        rest = {name: getattr(self, name)[:, :, self.given :] for name in ("x", "noisy", "velocity")}
        return replace(self, **rest)

    def again(self, noisy: Latent, sigma: float) -> Latent:
        """Velocity of the student for the trained frames, each chunk with the cache that it was made with.

        Raises:
            ValueError: the caches were not kept, or `noisy` has another number of chunks.
        """
        pairs = zip(noisy.split(self.plan.chunk, 2), self.trained, strict=True)
        return torch.cat([self._again(part, sigma, chunk) for part, chunk in pairs], 2)

    def _again(self, noisy: Latent, sigma: float, chunk: ChunkExit) -> Latent:
        if chunk.cache is None:
            raise ValueError("this video was made without keeping the caches of its chunks: nothing can be asked again")
        return self.causal.velocity(noisy, sigma, self.cond, chunk.cache)


def roll(
    student: CausalStudent,
    plan: ChunkPlan,
    grid: StepGrid,
    cond: Any,
    start: Latent,
    exit: int,
    transition: Transition,
    *,
    grad: bool,
    keep_caches: bool | None = None,
) -> ChunkRollout:
    """Run a causal student over all chunks of a video, each from noise to the exit step.

    Args:
        student: made causal.
        plan: chunks and cache.
        grid: steps; the first level is 1.
        cond: prompt embeddings ``[B, T, d]``.
        start: noise ``[B, C, F, H, W]``.
        exit: index of the step whose x0 prediction is the chunk, 0..K-1; the same on all ranks.
        transition: steps between the levels (`fewstep.train.chunk_noise`).
        grad: record the graph of the exit steps of the trained chunks.
        keep_caches: let trained chunks keep what they saw, for `ChunkRollout.again`; None: where there is a gradient.

    Raises:
        ValueError: the frames do not divide into chunks; see `ChunkPlan.first_trained`.
    """
    first, sigmas = plan.first_trained(start.shape[2]), grid.sigmas.tolist()[: exit + 1]
    kept = grad if keep_caches is None else keep_caches
    chunks = tuple(_chunks(student, plan, sigmas, cond, start, transition, first, grad=grad, keep=kept))
    how = {"plan": plan, "grid": grid, "cond": cond, "start": start, "transition": transition, "exit": exit}
    return joined(chunks, first, causal=student, student=student.role, sigma=sigmas[-1], **how)


def joined(chunks: Sequence[ChunkExit], first: int, **rest: Any) -> ChunkRollout:
    """The rollout of these chunks, of which those from frame `first` on are one clip."""
    trained = [chunk for chunk in chunks if chunk.start >= first]
    clips = {"x": "x0", "noisy": "noisy", "velocity": "velocity"}
    joint: dict[str, Any] = {
        name: torch.cat([getattr(chunk, of) for chunk in trained], 2) for name, of in clips.items()
    }
    return ChunkRollout(chunks=tuple(chunks), **joint, **rest)


def _chunks(
    student: CausalStudent,
    plan: ChunkPlan,
    sigmas: list[float],
    cond: Any,
    start: Latent,
    transition: Transition,
    first: int,
    *,
    grad: bool,
    keep: bool,
) -> Iterator[ChunkExit]:
    cache, sigma = ChunkCache(plan.policy), sigmas[-1]
    call = student.recomputed_velocity if plan.recompute else student.velocity
    for index, noise in enumerate(start.split(plan.chunk, 2)):
        at, noisy = index * plan.chunk, _at_exit(student, sigmas, cond, noise, transition, index, cache)
        with torch.set_grad_enabled(grad and at >= first and torch.is_grad_enabled()):
            velocity = (call if torch.is_grad_enabled() else student.velocity)(noisy, sigma, cond, cache)
        seen = cache if keep and at >= first else None  # a window's evicted chunks would live as long as the video
        made = ChunkExit(index=index, start=at, sigma=sigma, noisy=noisy, velocity=velocity, cache=seen)
        yield made
        if at + plan.chunk < start.shape[2]:  # nothing attends to the last chunk
            cache = student.commit(made.x0.detach(), cond, cache)


@torch.no_grad()
def _at_exit(
    student: CausalStudent,
    sigmas: list[float],
    cond: Any,
    noisy: Latent,
    transition: Transition,
    index: int,
    cache: ChunkCache,
) -> Latent:
    """One chunk from noise to the input of the last of these levels."""
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        noisy = transition(index, noisy, student.velocity(noisy, sigma, cond, cache), sigma, following)
    return noisy
