"""Flow-matching conventions that every training method shares: noising, predictions, shifts, steps and transitions.

``x_s = (1 - s) x + s eps`` with x0 ``x``, noise ``eps ~ N(0, I)`` and noise level ``s = sigma`` in [0, 1];
networks predict the velocity ``v = eps - x`` at timestep ``1000 sigma``. Everything is computed in float32, or in
float64 where the latent is float64, whatever the precision of the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Latent = Float[Tensor, "b *dims"]
"""``[B, C, F, H, W]`` for video; any dimensions after the batch."""
Sigma = float | Float[Tensor, "..."]
"""A noise level in [0, 1]: one number, ``[b]`` with one for each sample, or a tensor that broadcasts to the latents."""
TRAIN_STEPS = 1000
"""Timestep that a network sees at sigma 1."""
_Level = TypeVar("_Level", float, Tensor)


def noise(x0: Latent, eps: Latent, sigma: Sigma) -> Latent:
    """``x_s = (1 - s) x + s eps``."""
    x0, eps, s = _exact(x0, eps, sigma)
    return (1 - s) * x0 + s * eps


def velocity(x0: Latent, eps: Latent) -> Latent:
    """The target of a network, ``v = eps - x``."""
    x0, eps, _ = _exact(x0, eps, 0.0)
    return eps - x0


def x0_from_velocity(noisy: Latent, velocity: Latent, sigma: Sigma) -> Latent:
    """``x = x_s - s v``."""
    noisy, velocity, s = _exact(noisy, velocity, sigma)
    return noisy - s * velocity


def eps_from_velocity(noisy: Latent, velocity: Latent, sigma: Sigma) -> Latent:
    """``eps = x_s + (1 - s) v``."""
    noisy, velocity, s = _exact(noisy, velocity, sigma)
    return noisy + (1 - s) * velocity


def velocity_from_x0(noisy: Latent, x0: Latent, sigma: Sigma) -> Latent:
    """``v = (x_s - x) / s``; infinite or NaN at s = 0, where x0 says nothing about the velocity."""
    noisy, x0, s = _exact(noisy, x0, sigma)
    return (noisy - x0) / s


def score_from_x0(noisy: Latent, x0: Latent, sigma: Sigma) -> Latent:
    """Gradient of the log-density of ``x_s``: ``((1 - s) x - x_s) / s^2``; s > 0."""
    noisy, x0, s = _exact(noisy, x0, sigma)
    return ((1 - s) * x0 - noisy) / (s * s)


def score_from_velocity(noisy: Latent, velocity: Latent, sigma: Sigma) -> Latent:
    """The same score from a velocity: ``-(x_s + (1 - s) v) / s``; s > 0."""
    noisy, velocity, s = _exact(noisy, velocity, sigma)
    return -(noisy + (1 - s) * velocity) / s


def shift(t: _Level, factor: float) -> _Level:
    """``phi_k(t) = k t / (1 + (k - 1) t)``: more of [0, 1] at high noise for k > 1 (Wan: 5)."""
    return factor * t / (1 + (factor - 1) * t)


def euler(noisy: Latent, velocity: Latent, sigma: Sigma, next_sigma: Sigma) -> Latent:
    """Along the straight ray to another level: ``x_s' = x_s + (s' - s) v``."""
    noisy, velocity, s = _exact(noisy, velocity, sigma)
    return noisy + (_level(next_sigma, noisy) - s) * velocity


def renoise(x0: Latent, eps: Latent, next_sigma: Sigma) -> Latent:
    """The step of consistency models, ``x_s' = (1 - s') x + s' eps`` with fresh noise."""
    return noise(x0, eps, next_sigma)


def cps(
    noisy: Latent,
    velocity: Latent,
    sigma: Sigma,
    next_sigma: Sigma,
    eta: float,
) -> tuple[Latent, float | Tensor]:
    """Coefficient-preserving step (RTDMD, appendix C): the mean and standard deviation of ``x_s'`` given ``x_s``.

        mean = (1 - s') x + s' cos(eta pi/2) eps          sd = s' sin(eta pi/2)

    with ``x`` and ``eps`` as the network predicts them. ``eta = 0`` is `euler`, ``eta = 1`` is `renoise`; a step to
    ``s' = 0`` is deterministic. `sd` is a number where `next_sigma` is one, else it broadcasts to the latents.
    """
    x0, eps = x0_from_velocity(noisy, velocity, sigma), eps_from_velocity(noisy, velocity, sigma)
    following = _level(next_sigma, x0)
    mean = (1 - following) * x0 + following * math.cos(eta * math.pi / 2) * eps
    return mean, following * math.sin(eta * math.pi / 2)


def transition(
    noisy: Latent, velocity: Latent, sigma: float, following: float, eta: float, generator: torch.Generator | None
) -> Latent:
    """One step of a sampler to the next level.

    Args:
        noisy: ``x_s``.
        velocity: as the network predicts it there.
        sigma: ``s``.
        following: the next level ``s'``.
        eta: 0 Euler (bidirectional models), 1 fresh noise (autoregressive ones), and between them `cps`.
        generator: of the fresh noise; needed for ``eta > 0``.
    """
    if eta == 0:
        return euler(noisy, velocity, sigma, following)
    device = noisy.device if generator is None else generator.device  # one of the CPU gives the same noise everywhere
    fresh = torch.randn(noisy.shape, generator=generator, device=device, dtype=torch.float32)
    return transition_with(noisy, velocity, sigma, following, eta, fresh.to(noisy.device))


def transition_with(
    noisy: Latent, velocity: Latent, sigma: float, following: float, eta: float, fresh: Latent
) -> Latent:
    """`transition` with given noise."""
    mean, sd = cps(noisy, velocity, sigma, following, eta)
    return mean + sd * fresh


def even_steps(count: int) -> tuple[int, ...]:
    """Raw steps from 1000, evenly spaced: 4 gives 1000, 750, 500 and 250.

    Raises:
        ValueError: not 1 to 1000 steps.
    """
    if not 1 <= count <= TRAIN_STEPS:
        raise ValueError(f"1 to {TRAIN_STEPS} steps can be made, found {count}")
    return tuple(TRAIN_STEPS - number * (TRAIN_STEPS // count) for number in range(count))


@dataclass(frozen=True)
class StepGrid:
    """The noise levels that a few-step student is trained on and sampled with.

    A raw step is looked up in the table ``phi_k(linspace(1, 0, 1001)[:-1])`` at index ``1000 - raw``.
    """

    raw: tuple[int, ...] = (1000, 750, 500, 250)
    """Steps before the shift: falling whole numbers in 1..1000, the first of them 1000."""
    shift: float = 5.0
    """Factor of `shift`."""

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.raw, self.raw[1:], strict=False))
        whole = all(isinstance(step, int) and 1 <= step <= TRAIN_STEPS for step in self.raw)
        if not (self.raw and falling and whole and self.raw[0] == TRAIN_STEPS):
            raise ValueError(f"steps must be whole numbers that fall from 1000 and stay above 0, found {self.raw}")
        if self.shift <= 0:
            raise ValueError(f"shift must be positive, found {self.shift}")

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def sigmas(self) -> Float[Tensor, " k"]:
        """Noise levels in float64, falling from 1; the level 0 after the last is left out."""
        return shift(torch.tensor(self.raw, dtype=torch.float64) / TRAIN_STEPS, self.shift)

    @property
    def timesteps(self) -> Float[Tensor, " k"]:
        """What the network is told, ``1000 sigma`` in float64, not rounded."""
        return self.sigmas * TRAIN_STEPS

    def scheduler(self, *, stochastic: bool = False) -> Any:
        """A stock diffusers scheduler that runs exactly these levels when a pipeline asks for ``len(grid)`` steps.

        ``FlowMatchEulerDiscreteScheduler`` spaces its own levels evenly, shifts them and stretches the last one to
        ``shift_terminal``. Both maps are fractional-linear, so another shift with the right end gives our levels; the
        scheduler needs no class of ours and survives ``save_pretrained``.

        Args:
            stochastic: re-noise between the levels (`renoise`) instead of Euler steps.

        Raises:
            ValueError: the raw steps are not evenly spaced, or so many that the scheduler cannot hold them.
        """
        from diffusers import FlowMatchEulerDiscreteScheduler

        if len(self) == 1:
            return FlowMatchEulerDiscreteScheduler(shift=1.0, stochastic_sampling=stochastic)
        factor = _scheduler_shift(self.raw, self.shift)
        end = self.sigmas[-1].item()
        return FlowMatchEulerDiscreteScheduler(shift=factor, shift_terminal=end, stochastic_sampling=stochastic)


def _scheduler_shift(raw: Sequence[int], factor: float) -> float:
    """The shift k whose levels, stretched to end at our last one, are ours.

    diffusers takes u_i = 1 - i (1 - phi_k(m)) / n, n = K - 1, m = 1/1000. With a spacing h of ours,
    1 - phi_f(1 - i h) = i h / (f - (f - 1) i h), so equal ratios need (k - 1)/k (1 - phi_k(m))/n = (f - 1)/f h.
    """
    gaps = {a - b for a, b in zip(raw, raw[1:], strict=False)}
    if len(gaps) != 1:
        raise ValueError(f"diffusers' scheduler can only hold evenly spaced raw steps, found {tuple(raw)}")
    m, span = 1 / TRAIN_STEPS, (factor - 1) / factor * (raw[0] - raw[-1]) / TRAIN_STEPS
    # span m k^2 + (span - 1)(1 - m) k + (1 - m) = 0; the root that is 1 for factor 1
    half = (1 - span) * (1 - m)
    root = half * half - 4 * span * m * (1 - m)
    if root < 0:
        raise ValueError(f"diffusers' scheduler cannot hold steps down to {raw[-1]} with a shift of {factor}")
    return 2 * (1 - m) / (half + math.sqrt(root))


@dataclass(frozen=True)
class ScoreTime:
    """The noise level at which critic and teacher are compared: ``clamp(phi_k(r / 1000), low, high)``, r uniform."""

    shift: float = 5.0
    """Factor of `shift`."""
    low: float = 0.02
    """Lowest level, applied after the shift."""
    high: float = 0.98
    """Highest level, applied after the shift."""

    def __post_init__(self) -> None:
        if self.shift <= 0 or not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"score times need shift > 0 and 0 <= low <= high <= 1, found {self}")

    @property
    def levels(self) -> Float[Tensor, " 1000"]:
        """Sigma for each r in 0..999, in float64."""
        raw = torch.arange(TRAIN_STEPS, dtype=torch.float64) / TRAIN_STEPS
        return shift(raw, self.shift).clamp(self.low, self.high)

    def sample(
        self, batch: int, generator: torch.Generator, between: tuple[int, int] = (0, TRAIN_STEPS)
    ) -> Float[Tensor, " b"]:
        """One level for each sample, in float32 on the device of `generator`.

        Args:
            batch: number of samples.
            generator: where r comes from.
            between: r is drawn from ``between[0] <= r < between[1]``; the default is every level.

        Raises:
            ValueError: `between` is empty or leaves 0..1000.
        """
        first, end = between
        if not 0 <= first < end <= TRAIN_STEPS:
            raise ValueError(f"between must satisfy 0 <= first < end <= 1000, found {between}")
        raw = torch.randint(first, end, (batch,), generator=generator, device=generator.device)
        return self.levels.float().to(generator.device)[raw]


def _exact(a: Tensor, b: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor, float | Tensor]:
    """Both latents in float32, or float64 where one of them is, with the level beside them."""
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    a, b = a.to(dtype), b.to(dtype)
    return a, b, _level(sigma, a)


def _level(sigma: Sigma, latent: Tensor) -> float | Tensor:
    if not isinstance(sigma, Tensor):
        return sigma
    if sigma.ndim not in (0, 1, latent.ndim):
        raise ValueError(f"sigma must be [B] or have the dimensions of the latent, found {tuple(sigma.shape)}")
    wide = sigma.reshape(-1, *[1] * (latent.ndim - 1)) if sigma.ndim == 1 else sigma
    return wide.to(latent)
