"""Backward simulation and the DMD2 objective: gradients by hand, in closed form, and their routing."""

from __future__ import annotations

import pytest
import torch
from fewstep import flow
from fewstep.flow import ScoreTime, StepGrid
from fewstep.train.dmd2 import DMD2, dmd_gradient, dmd_loss
from fewstep.train.flow_matching import FlowMatching
from fewstep.train.objective import UpdateSchedule
from fewstep.train.roles import Role, Roles
from fewstep.train.rollout import draw_exit, rollout, sample


class Affine(torch.nn.Module):
    """``x = m + s z`` at sigma 1, in float64."""

    def __init__(self, m: float, s: float):
        super().__init__()
        self.m = torch.nn.Parameter(torch.tensor(m, dtype=torch.float64))
        self.s = torch.nn.Parameter(torch.tensor(s, dtype=torch.float64))


class Slopes(torch.nn.Module):
    """A velocity that bends along the way, with a parameter for each of the four levels."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.3, 0.5, 0.7, 0.9], dtype=torch.float64))


def by_level(network, noisy, sigma, cond):
    index = (StepGrid().sigmas - sigma[0]).abs().argmin()
    return network.w[index] * torch.sin(noisy)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("first", [0, 1])
def test_exit_indices_are_uniform(first):
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[draw_exit(StepGrid(), generator, first)] += 1
    expected = 4000 / (4 - first)
    chi_square = ((counts[first:] - expected) ** 2 / expected).sum()
    assert counts[:first].sum() == 0
    assert chi_square < 16.27  # 0.999 quantile for 3 degrees of freedom


def test_the_first_draw_is_the_one_without_a_number_and_later_ones_are_others():
    draws = [draw_exit(StepGrid(), torch.Generator().manual_seed(7), number=number) for number in range(8)]
    assert draws[0] == draw_exit(StepGrid(), torch.Generator().manual_seed(7)) and len(set(draws)) > 1


@pytest.mark.parametrize("exit", range(4))
@pytest.mark.parametrize("eta", [0.0, 0.9, 1.0])
def test_the_gradient_is_that_of_the_exit_step_alone(exit, eta):
    role = Role(Slopes(), predict=by_level)
    generator = torch.Generator().manual_seed(1)
    made = rollout(role, StepGrid(), None, noise(2, 1, 1, 2, 2), exit, grad=True, eta=eta, generator=generator)
    made.x.sum().backward()
    gradient = role.network.w.grad.clone()
    role.network.w.grad = None
    sigma = StepGrid().sigmas[exit].item()
    manual = made.noisy - sigma * role.network.w[exit] * torch.sin(made.noisy)
    manual.sum().backward()
    torch.testing.assert_close(made.x, manual, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, role.network.w.grad, rtol=1e-12, atol=1e-14)
    assert gradient.count_nonzero() == 1 and not made.noisy.requires_grad
    assert (made.exit, made.sigma) == (exit, sigma)


def test_between_the_levels_it_goes_by_euler_or_by_fresh_noise():
    role, start = Role(Slopes(), predict=by_level), noise(2, 1, 1, 2, 2)
    s = StepGrid().sigmas.tolist()
    velocity = role.velocity(start, s[0], None)
    euler = rollout(role, StepGrid(), None, start, 1, grad=False)
    assert torch.equal(euler.noisy, flow.euler(start, velocity, s[0], s[1]).detach()) and not euler.x.requires_grad
    again = rollout(role, StepGrid(), None, start, 1, grad=False, eta=1.0, generator=torch.Generator().manual_seed(4))
    fresh = torch.randn(start.shape, generator=torch.Generator().manual_seed(4))
    expected = flow.renoise(flow.x0_from_velocity(start, velocity, s[0]), fresh, s[1])
    torch.testing.assert_close(again.noisy, expected.detach())


@pytest.mark.parametrize("raw", [(1000,), (1000, 500), (1000, 750, 500, 250)], ids=len)
def test_a_velocity_constant_along_rays_is_sampled_exactly(raw):
    target = noise(2, 1, 1, 2, 2, seed=9)
    ray = Role(Slopes(), predict=lambda network, noisy, sigma, cond: (noisy - target) / sigma.view(-1, 1, 1, 1, 1))
    end = sample(ray, StepGrid(raw), None, noise(2, 1, 1, 2, 2))
    torch.testing.assert_close(end, target)


def gaussian(mean: float, variance: float):
    """The exact velocity for data N(mean, variance)."""

    def predict(network, noisy, sigma, cond):
        s = sigma.view(-1, *[1] * (noisy.ndim - 1))
        a = 1 - s
        x0 = mean + a * variance / (a * a * variance + s * s) * (noisy - a * mean)
        return flow.velocity_from_x0(noisy, x0, s)

    return predict


def test_the_gradient_for_gaussians_is_the_closed_form(make_batch):
    """Student N(.7, .8^2), exact critic, teacher N(.2, 1.5), sigma .6: without the normaliser (.3, -.1428374)."""
    student = Role(Affine(0.7, 0.8), predict=lambda net, z, sigma, cond: z - (net.m + net.s * z))
    critic = Role(Affine(0, 0), predict=gaussian(0.7, 0.64))
    teacher = Role(Affine(0, 0), predict=gaussian(0.2, 1.5))
    objective = DMD2(
        roles=Roles(student=student, critic=critic, teacher=teacher),
        grid=StepGrid((1000,)),
        score_time=ScoreTime(low=0.6, high=0.6),
        guidance=1.0,
    )
    batch = make_batch(1, shape=(1, 1, 1000, 2000))
    objective.losses("student", batch, 0)["dmd"].backward()
    with torch.no_grad():
        again = make_batch(1, shape=(1, 1, 1000, 2000))
        x = objective.rollout(again, grad=False).x
        sigma, eps = objective.score_time.sample(1, again.generator), again.normal()
        n = (x - teacher.x0(flow.noise(x, eps, sigma), sigma, None)).abs().mean()
    gradient = torch.stack([student.network.m.grad, student.network.s.grad]) * n
    torch.testing.assert_close(gradient, torch.tensor([0.3, -0.1428374], dtype=torch.float64), rtol=0, atol=3e-3)


def test_the_loss_moves_each_sample_along_its_direction():
    x, critic, teacher = (noise(4, 2, 3, seed=i) for i in range(3))
    x.requires_grad_()
    direction = dmd_gradient(x, critic, teacher)
    for i in range(4):
        n = (x[i] - teacher[i]).abs().mean()
        torch.testing.assert_close(direction[i], ((critic[i] - teacher[i]) / n).detach())
    dmd_loss(x, direction).backward()
    torch.testing.assert_close(x.grad, direction / x.numel(), rtol=0, atol=1e-14)
    assert dmd_loss(x, direction).item() == pytest.approx(0.5 * direction.square().mean().item())


def test_a_sample_that_equals_the_teacher_is_not_moved():
    x = noise(2, 3)
    assert (dmd_gradient(x, x.clone(), x.clone()) == 0).all()


def test_gradients_reach_only_the_role_that_is_updated(roles, make_batch):
    objective = DMD2(roles=roles)
    if roles.teacher.network is not roles.student.network:
        roles.teacher.network.requires_grad_(True)  # made trainable on purpose
    for name, other in (("student", "critic"), ("critic", "student")):
        sum(objective.losses(name, make_batch(), 0).values()).backward()
        assert all(weight.grad is not None for weight in roles[name].parameters())
        assert any(weight.grad.abs().sum() > 0 for weight in roles[name].parameters())
        for silent in (roles[other], roles.teacher):
            assert all(weight.grad is None for weight in silent.parameters())
        roles.zero_grad()


def test_unlike_sgmd_the_student_learns_from_a_critic_that_ignores_its_input(roles, make_batch):
    blind = Role(roles.critic.network, predict=lambda net, noisy, sigma, cond: torch.zeros_like(noisy))
    objective = DMD2(roles=Roles(student=roles.student, critic=blind, teacher=roles.teacher))
    objective.losses("student", make_batch(), 0)["dmd"].backward()
    assert any(weight.grad.abs().sum() > 0 for weight in roles.student.parameters())


def test_at_the_start_without_guidance_nothing_pulls(make_batch):
    from fewstep.families import wan
    from fewstep.train.roles import full_roles

    roles = full_roles(wan.tiny())
    loss = DMD2(roles=roles, guidance=1.0).losses("student", make_batch(), 0)["dmd"]
    loss.backward()
    assert loss.item() == 0 and all((weight.grad == 0).all() for weight in roles.student.parameters())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (UpdateSchedule(2), ["sCC", "sCC", "sCC"]),
        (UpdateSchedule(1), ["sC", "sC", "sC"]),
        (UpdateSchedule(2, count="critic"), ["sC", "C", "sC"]),
    ],
)
def test_both_ways_of_counting(schedule, expected):
    letters = {"student": "s", "critic": "C"}
    assert ["".join(letters[role] for role in schedule.phases(step)) for step in range(3)] == expected


def test_flow_matching_regresses_the_velocity_and_drops_prompts(make_batch):
    seen = []

    def predict(network, noisy, sigma, cond):
        seen.append((noisy, sigma, cond))
        return torch.zeros_like(noisy) * network.m

    role = Role(Affine(0, 0), predict=predict)
    batch = make_batch(400, x0=noise(400, 3, 2, 4, 4, seed=2), uncond=torch.full((1, 5, 8), 7.0))
    loss = FlowMatching(roles=Roles(student=role), shift=3.0, drop=0.25).losses("student", batch, 0)["velocity"]
    (noisy, sigma, cond), x0 = seen[0], batch.x0
    s = sigma.view(-1, 1, 1, 1, 1)
    eps = (noisy - (1 - s) * x0) / s
    torch.testing.assert_close(loss, (eps - x0).square().mean())
    assert sigma.median().item() == pytest.approx(0.75, abs=0.05)
    assert (cond == 7).all((1, 2)).double().mean().item() == pytest.approx(0.25, abs=0.08)


def test_flow_matching_without_data_says_so(make_batch):
    with pytest.raises(ValueError, match="needs data"):
        FlowMatching(roles=Roles()).losses("student", make_batch(), 0)
