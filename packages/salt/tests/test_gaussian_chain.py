"""A chunk-wise generator of a Gaussian chain, whose every distribution is known: S13.

Frames ``x_j = rho x_{j-1} + sqrt(1 - rho^2) z_j`` are made from a cache ``c = x_{j-1} + sqrt(kappa) zeta``, by the
linear generator ``x_j = gain c + spread z_j``. The bidirectional teacher is the Gaussian of covariance ``rho^|i-j|``.
"""

from __future__ import annotations

import math

import pytest
import torch
from fewstep import flow
from fewstep.train.dmd2 import dmd_gradient
from torch import Tensor

F64 = {"dtype": torch.float64}
RHO, KAPPA, FRAMES = 0.9, 0.05, 8
CLEAN = RHO, math.sqrt(1 - RHO**2)
"""Gain and spread that are exact for a clean cache."""
AWARE = RHO / (1 + KAPPA), math.sqrt(1 - RHO**2 / (1 + KAPPA))
"""The best prediction of a frame from its corrupted cache."""
LEVELS = flow.ScoreTime().levels[50::100]


def chain(gain, spread, kappa: float) -> Tensor:
    """Rows ``[F, 2 F]``: each frame as a mixture of its noises and of the cache's; no gradient through the cache."""
    noises = torch.eye(2 * FRAMES, **F64)
    rows = [noises[0]]
    for j in range(1, FRAMES):
        cache = rows[-1].detach() + math.sqrt(kappa) * noises[FRAMES + j]
        rows.append(gain * cache + spread * noises[j])
    return torch.stack(rows)


def denoiser(covariance: Tensor, level) -> Tensor:
    """The matrix of the posterior mean of x0 at a noise level, ``a C (a^2 C + s^2)^-1``; one for each level."""
    s = torch.as_tensor(level, **F64).reshape(-1, 1, 1)
    a, one = 1 - s, torch.eye(FRAMES, **F64)
    return a * torch.linalg.solve(a * a * covariance + s * s * one, covariance.expand(len(s), -1, -1))


def target() -> Tensor:
    index = torch.arange(FRAMES, **F64)
    return RHO ** (index[:, None] - index).abs()


def slope(gain: Tensor, spread: Tensor, kappas) -> Tensor:
    """The expected gradient of DMD, with the critic that is exact for a Gaussian of the generator's covariance.

    ``E (u - T)^T dx = tr((U - T) a M dM^T)`` for ``x = M xi``, summed over noise levels and caches.
    """
    rows = [chain(gain, spread, kappa) for kappa in kappas]
    covariance = sum(one.detach() @ one.detach().T for one in rows) / len(rows)
    gap = ((denoiser(covariance, LEVELS) - denoiser(target(), LEVELS)) * (1 - LEVELS)[:, None, None]).sum(0)
    return sum(((gap @ one.detach()) * one).sum() for one in rows) / len(rows)


def trained(kappas, begin=CLEAN) -> tuple[float, float]:
    """Gain and spread where the gradient of DMD vanishes."""
    parameters = [torch.tensor(value, requires_grad=True, **F64) for value in begin]
    optimiser = torch.optim.Adam(parameters, lr=5e-3)
    for _ in range(400):
        optimiser.zero_grad()
        slope(*parameters, kappas).backward()
        optimiser.step()
    gain, spread = (parameter.item() for parameter in parameters)
    return gain, spread


def stationary(gain: float, spread: float, kappa: float) -> float:
    """Variance of a long video: ``v = gain^2 (v + kappa) + spread^2``."""
    return (gain**2 * kappa + spread**2) / (1 - gain**2)


def test_s13_the_exact_generator_reproduces_the_covariance_and_has_no_gradient():
    rows = chain(*CLEAN, 0.0)
    torch.testing.assert_close(rows @ rows.T, target(), rtol=0, atol=1e-12)
    parameters = [torch.tensor(value, requires_grad=True, **F64) for value in CLEAN]
    slope(*parameters, [0.0]).backward()
    assert all(parameter.grad.abs() < 1e-12 for parameter in parameters)


@pytest.mark.parametrize("gain", [0.7, 0.9, 0.95])
def test_s13_the_expected_gradient_is_that_of_samples(gain):
    """With the functions of the loop; the critic is exact for this generator, and so is the teacher for that of rho."""
    generator, level = torch.Generator().manual_seed(0), 0.8
    rows = chain(gain, math.sqrt(1 - gain**2), 0.0)
    x = torch.randn(40_000, 2 * FRAMES, generator=generator, **F64) @ rows.T
    noisy = flow.noise(x, torch.randn(x.shape, generator=generator, **F64), level)
    own, true = (denoiser(covariance, level)[0] for covariance in (rows @ rows.T, target()))
    found = ((noisy @ (own - true).T)[:, 1:] * x[:, :-1]).sum(1).mean().item()
    expected = (1 - level) * ((own - true) @ rows @ rows.T).diagonal(-1).sum().item()
    assert found == pytest.approx(expected, abs=5e-3)
    direction = dmd_gradient(x, noisy @ own.T, noisy @ true.T)
    assert (direction.abs().max() < 1e-12) == (gain == RHO) == (abs(expected) < 1e-12)


@pytest.mark.parametrize("begin", [(0.6, 0.6), (0.97, 0.3)])
def test_s13_dmd_finds_the_exact_generator(begin):
    assert trained([0.0], begin) == pytest.approx(CLEAN, abs=2e-3)


def test_s13_a_corrupted_cache_makes_the_clean_generator_drift():
    assert stationary(*CLEAN, 0.0) == pytest.approx(1, abs=1e-12)
    assert stationary(*CLEAN, KAPPA) == pytest.approx(1 + RHO**2 * KAPPA / (1 - RHO**2), abs=1e-12)
    assert stationary(*CLEAN, KAPPA) == pytest.approx(1.2132, abs=5e-5)
    long = [1.0]
    for _ in range(200):
        long.append(CLEAN[0] ** 2 * (long[-1] + KAPPA) + CLEAN[1] ** 2)
    assert long[1] < long[2] < long[10] and long[-1] == pytest.approx(1.2132, abs=5e-5)


def test_s13_the_cache_aware_optimum_keeps_the_variance():
    assert stationary(*AWARE, KAPPA) == pytest.approx(1, abs=1e-12)
    rows = chain(*AWARE, KAPPA)
    covariance = rows @ rows.T
    torch.testing.assert_close(covariance.diagonal(), torch.ones(FRAMES, **F64), rtol=0, atol=1e-12)
    assert covariance.diagonal(1).tolist() == pytest.approx([RHO / (1 + KAPPA)] * (FRAMES - 1), abs=1e-12)
    assert AWARE[0] == pytest.approx(0.857, abs=5e-4)


def test_s13_training_on_both_caches_lands_between():
    drift = {name: stationary(*trained(kappas), KAPPA) for name, kappas in (("clean", [0.0]), ("both", [0.0, KAPPA]))}
    assert drift["clean"] == pytest.approx(1.2132, abs=1e-3)
    assert stationary(*AWARE, KAPPA) + 0.05 < drift["both"] < drift["clean"] - 0.05


def test_training_on_the_corrupted_cache_matches_the_video_and_not_the_frame():
    """DMD finds the chain itself: gain rho, and less noise of its own in place of the cache's."""
    gain, spread = trained([KAPPA])
    assert gain == pytest.approx(RHO, abs=5e-3) and spread**2 == pytest.approx(1 - RHO**2 * (1 + KAPPA), abs=5e-3)
    assert stationary(gain, spread, KAPPA) == pytest.approx(1, abs=0.02)
