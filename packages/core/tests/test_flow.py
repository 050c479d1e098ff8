"""Flow-matching conventions against closed forms and against diffusers' own scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from fewstep import flow

SHAPE = (4, 2, 3, 5, 6)
LEVELS = torch.tensor([0.05, 0.4, 0.75, 1.0], dtype=torch.float64)


def latents(*, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64).to(dtype)
    return x0, eps


@pytest.mark.parametrize("sigma", [0.3, LEVELS, LEVELS.view(4, 1, 1, 1, 1), torch.tensor(0.7)], ids=str)
def test_every_conversion_agrees_with_the_noising(sigma):
    x0, eps = latents()
    noisy, velocity = flow.noise(x0, eps, sigma), flow.velocity(x0, eps)
    wide = sigma.reshape(-1, 1, 1, 1, 1) if isinstance(sigma, torch.Tensor) else sigma
    torch.testing.assert_close(noisy, (1 - wide) * x0 + wide * eps, rtol=0, atol=1e-7)
    torch.testing.assert_close(flow.x0_from_velocity(noisy, velocity, sigma), x0)
    torch.testing.assert_close(flow.eps_from_velocity(noisy, velocity, sigma), eps)
    torch.testing.assert_close(flow.velocity_from_x0(noisy, x0, sigma), velocity, rtol=1e-6, atol=1e-6)
    score = flow.score_from_x0(noisy, x0, sigma)
    torch.testing.assert_close(score, flow.score_from_velocity(noisy, velocity, sigma), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(score, -eps / wide, rtol=1e-6, atol=1e-6)


def test_score_differences_are_scaled_differences_of_x0_predictions():
    x0, eps = latents()
    other, _ = latents(seed=1)
    noisy, s = flow.noise(x0, eps, LEVELS), LEVELS.view(-1, 1, 1, 1, 1)
    difference = flow.score_from_x0(noisy, x0, LEVELS) - flow.score_from_x0(noisy, other, LEVELS)
    torch.testing.assert_close(difference, (1 - s) / s**2 * (x0 - other))


def test_velocity_error_is_the_x0_error_over_sigma():
    x0, eps = latents()
    guess, _ = latents(seed=1)
    noisy, s = flow.noise(x0, eps, LEVELS), LEVELS.view(-1, 1, 1, 1, 1)
    u = flow.x0_from_velocity(noisy, guess, LEVELS)
    torch.testing.assert_close((guess - flow.velocity(x0, eps)) ** 2, (u - x0) ** 2 / s**2)


def test_half_precision_is_computed_in_float32():
    x0, eps = latents(dtype=torch.bfloat16)
    noisy = flow.noise(x0, eps, LEVELS)
    assert noisy.dtype == torch.float32
    assert flow.x0_from_velocity(noisy, eps, 0.5).dtype == torch.float32
    assert torch.equal(noisy, flow.noise(x0.float(), eps.float(), LEVELS))
    assert flow.noise(*latents(), LEVELS.float()).dtype == torch.float64


def test_a_sigma_that_fits_nothing_is_refused():
    with pytest.raises(ValueError, match=r"sigma must be \[B\].*found \(4, 3\)"):
        flow.noise(*latents(), torch.zeros(4, 3))


@pytest.mark.parametrize("factor", [1.0, 3.0, 5.0, 8.0])
def test_shift_keeps_the_ends_and_composes(factor):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    shifted = flow.shift(t, factor)
    assert shifted[0] == 0 and shifted[-1] == 1 and (shifted.diff() > 0).all()
    torch.testing.assert_close(flow.shift(shifted, 1 / factor), t)
    assert flow.shift(0.5, factor) == pytest.approx(factor / (1 + factor))


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_euler_with_a_velocity_constant_along_rays_gives_x0(steps):
    x0, eps = latents()
    levels = [*flow.shift(torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1], 5.0), 0.0]
    noisy = flow.noise(x0, eps, levels[0])
    for sigma, following in zip(levels, levels[1:], strict=False):
        velocity = (noisy - x0) / sigma
        noisy = flow.euler(noisy, velocity, sigma, following)
        torch.testing.assert_close(noisy, flow.noise(x0, eps, following))
    torch.testing.assert_close(noisy, x0)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (5.0, [1000, 937.5, 833.3333333, 625]),
        (8.0, [1000, 960, 888.8888889, 727.2727273]),
        (3.0, [1000, 900, 750, 500]),
        (1.0, [1000, 750, 500, 250]),
    ],
)
def test_the_grid_is_the_one_of_the_papers(factor, expected):
    grid = flow.StepGrid(shift=factor)
    torch.testing.assert_close(grid.timesteps, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
    table = flow.shift(torch.linspace(1, 0, 1001, dtype=torch.float64)[:-1], factor)
    torch.testing.assert_close(grid.sigmas, table[[0, 250, 500, 750]], rtol=1e-12, atol=0)


GRIDS = [
    ((1000, 750, 500, 250), 5.0),
    ((1000, 750, 500, 250), 8.0),
    ((1000, 750, 500, 250), 1.0),
    ((1000, 500), 5.0),
    ((1000, 875, 750, 625, 500, 375, 250, 125), 5.0),
    ((1000, 750, 500, 250), math.exp(2.2912)),
    ((1000, 500), 0.5),
    ((1000,), 5.0),
]


@pytest.mark.parametrize("stochastic", [False, True], ids=["euler", "renoise"])
@pytest.mark.parametrize(("raw", "factor"), GRIDS, ids=str)
def test_a_stock_scheduler_runs_the_grid_also_after_saving(tmp_path, raw, factor, stochastic):
    grid = flow.StepGrid(raw, factor)
    grid.scheduler(stochastic=stochastic).save_pretrained(tmp_path)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
    scheduler.set_timesteps(num_inference_steps=len(grid))
    exact = torch.cat([grid.sigmas, torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(scheduler.sigmas, exact.float(), rtol=2e-7, atol=0)
    torch.testing.assert_close(scheduler.timesteps, grid.timesteps.float(), rtol=2e-7, atol=0)
    assert scheduler.config.stochastic_sampling is stochastic


def test_the_default_grid_of_diffusers_is_another_one():
    stock = FlowMatchEulerDiscreteScheduler(shift=5.0)
    stock.set_timesteps(4)
    torch.testing.assert_close(stock.timesteps, torch.tensor([1000, 909.7, 717.3, 24.4]), rtol=0, atol=0.1)
    assert (stock.timesteps - flow.StepGrid().timesteps).abs().max() > 100


def test_a_saved_scheduler_walks_as_our_euler():
    grid = flow.StepGrid()
    scheduler = grid.scheduler()
    scheduler.set_timesteps(4)
    noisy, velocity = latents(dtype=torch.float32)
    for i, t in enumerate(scheduler.timesteps):
        following = grid.sigmas[i + 1].item() if i < 3 else 0.0
        ours = flow.euler(noisy, velocity, grid.sigmas[i].item(), following)
        noisy = scheduler.step(velocity, t, noisy, return_dict=False)[0]
        torch.testing.assert_close(noisy, ours, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("raw", [(), (750, 500), (1000, 1000), (1000, 500, 750), (1000, 0), (1000.0, 500), (1001,)])
def test_steps_that_do_not_fall_from_1000_are_refused(raw, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # users run without the checks of the test run
    with pytest.raises(ValueError, match="fall from 1000"):
        flow.StepGrid(raw)


@pytest.mark.parametrize(
    ("raw", "factor", "message"),
    [((1000, 960, 727), 1.0, "evenly spaced"), (tuple(range(1000, 0, -20)), 200.0, "down to 20 with a shift of 200")],
    ids=["uneven", "too fine"],
)
def test_a_grid_that_the_stock_scheduler_cannot_hold_says_so(raw, factor, message):
    with pytest.raises(ValueError, match=message):
        flow.StepGrid(raw, factor).scheduler()


def test_weights_over_the_score_times_are_those_of_the_card():
    sigma = flow.ScoreTime().levels
    assert len(sigma) == 1000
    weight = (1 - sigma) ** 2 / sigma**4
    assert weight.min().item() == pytest.approx(4.3366e-4, rel=1e-4)
    assert weight.max().item() == pytest.approx(6.0025e6, rel=1e-4)
    assert (weight.sort().values[-10:].sum() / weight.sum()).item() == pytest.approx(0.9813, abs=5e-5)
    quantiles = torch.quantile(sigma, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64))
    expected = torch.tensor([0.2082, 0.6247, 0.8331, 0.9373, 0.98], dtype=torch.float64)
    torch.testing.assert_close(quantiles, expected, rtol=0, atol=1e-4)


def test_score_times_are_drawn_uniformly_over_the_levels():
    law = flow.ScoreTime()
    drawn = law.sample(200_000, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32 and drawn.min() >= law.low and drawn.max() <= law.high
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert (drawn <= law.levels[int(1000 * share)]).double().mean().item() == pytest.approx(share, abs=0.006)
    again = law.sample(200_000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    low = law.sample(10_000, torch.Generator().manual_seed(0), between=(0, 200))
    assert low.min().item() == pytest.approx(0.02) and low.max().item() == pytest.approx(0.554, abs=2e-3)


@pytest.mark.parametrize("between", [(5, 5), (-1, 3), (0, 1001)])
def test_an_empty_range_of_score_times_is_refused(between):
    with pytest.raises(ValueError, match="between"):
        flow.ScoreTime().sample(1, torch.Generator(), between=between)


class TestCps:
    """The transition of RTDMD: ends of eta, what it preserves, and the closed form for Gaussians."""

    def test_eta_0_is_euler_and_eta_1_is_renoise(self):
        noisy, velocity = latents()
        mean, sd = flow.cps(noisy, velocity, LEVELS, 0.5 * LEVELS, 0.0)
        torch.testing.assert_close(mean, flow.euler(noisy, velocity, LEVELS, 0.5 * LEVELS), rtol=0, atol=1e-12)
        assert (sd == 0).all() and sd.shape == (4, 1, 1, 1, 1)
        fresh = latents(seed=1)[0]
        mean, sd = flow.cps(noisy, velocity, 0.75, 0.5, 1.0)
        x0 = flow.x0_from_velocity(noisy, velocity, 0.75)
        torch.testing.assert_close(mean + sd * fresh, flow.renoise(x0, fresh, 0.5), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("eta", [0.0, 0.5, 0.9, 1.0])
    def test_the_step_to_zero_is_the_x0_prediction(self, eta):
        noisy, velocity = latents()
        mean, sd = flow.cps(noisy, velocity, 0.75, 0.0, eta)
        torch.testing.assert_close(mean, flow.x0_from_velocity(noisy, velocity, 0.75))
        assert sd == 0

    @pytest.mark.parametrize("eta", [0.0, 0.5, 0.9, 1.0])
    def test_with_the_true_noise_the_coefficients_are_kept(self, eta):
        x0, eps = latents()
        mean, sd = flow.cps(flow.noise(x0, eps, 0.9), flow.velocity(x0, eps), 0.9, 0.75, eta)
        of_eps = (mean - 0.25 * x0) / eps
        torch.testing.assert_close(of_eps, torch.full_like(eps, 0.75 * math.cos(eta * math.pi / 2)))
        assert of_eps[0, 0, 0, 0, 0].item() ** 2 + sd**2 == pytest.approx(0.75**2)

    @pytest.mark.parametrize(
        ("variance", "expected"),
        [
            (0.25, (0.044990, 0.043896, 0.041204, 0.040263)),
            (1.0, (0.377775, 0.353049, 0.293042, 0.272530)),
            (4.0, (1.999217, 1.806851, 1.345825, 1.196194)),
            (0.0, (0.0, 0.0, 0.0, 0.0)),
        ],
    )
    def test_variance_after_four_steps_with_the_optimal_denoiser(self, variance, expected):
        # with a linear denoiser the mean is kappa x, so that kappa^2 C + sd^2 is the exact variance of the next state
        levels, one = (1.0, 0.9, 0.75, 0.5, 0.0), torch.ones(1, 1, dtype=torch.float64)
        for eta, final in zip((0.0, 0.5, 0.9, 1.0), expected, strict=True):
            c = 1.0
            for t, following in zip(levels, levels[1:], strict=False):
                velocity = one * (t - (1 - t) * variance) / ((1 - t) ** 2 * variance + t**2)
                kappa, sd = flow.cps(one, velocity, t, following, eta)
                c = kappa.item() ** 2 * c + sd**2
            assert c == pytest.approx(final, abs=1e-6)
