"""The objective on tiny Wan roles, with full weights and with LoRA: T6 and T9, fresh and shared samples, diversity."""

from __future__ import annotations

import itertools

import pytest
import torch
from fewstep import flow
from fewstep.families import wan
from fewstep.flow import StepGrid
from fewstep.train.objective import UpdateSchedule
from fewstep.train.roles import Role, Roles, guided
from fewstep_sgmd.loss import sid_loss
from fewstep_sgmd.objective import Diversity, SGMDObjective, SiD
from torch import Tensor


def backward(objective: SGMDObjective, name: str, batch, step: int = 0) -> dict[str, Tensor]:
    """One phase as the loop runs it, without the optimiser."""
    with objective.roles.updating(name):
        parts = objective.losses(name, batch, step)
        sum(parts.values()).backward()
    return parts


def gradients(role: Role) -> list[Tensor | None]:
    return [None if weight.grad is None else weight.grad.clone() for weight in role.parameters()]


def with_predict(role: Role, predict) -> Role:
    return Role(role.network, role.adapter, predict)


def test_t6_only_the_role_that_is_updated_gets_gradients(roles, make_batch):
    if roles.teacher.network is not roles.student.network:
        roles.teacher.network.requires_grad_(True)  # made trainable on purpose
    objective = SGMDObjective(roles=roles)
    before = {name: {k: v.clone() for k, v in role.state().items()} for name, role in roles.items()}
    for name, other in (("student", "critic"), ("critic", "student")):
        backward(objective, name, make_batch())
        own = gradients(roles[name])
        assert all(gradient is not None for gradient in own) and any(gradient.abs().sum() > 0 for gradient in own)
        assert gradients(roles[other]) == [None] * len(roles[other].parameters())
        assert gradients(roles.teacher) == [None] * len(roles.teacher.parameters())
        roles.zero_grad()
    for name, role in roles.items():
        assert all(torch.equal(value, before[name][k]) for k, value in role.state().items()), name


@pytest.mark.parametrize("kind", [SGMDObjective, SiD])
def test_t6_the_only_way_to_the_student_is_the_input_of_the_critic(roles, make_batch, kind):
    def constant(net, noisy, sigma, cond):
        return noisy / sigma.view(-1, 1, 1, 1, 1)  # so that x_s - s v is 0 whatever x_s is

    other = Roles(student=roles.student, critic=with_predict(roles.critic, constant), teacher=roles.teacher)
    parts = backward(kind(roles=other), "student", make_batch())
    total = sum(gradient.abs().sum() for gradient in gradients(roles.student))
    assert parts and (total < 1e-4) == (kind is SGMDObjective)


@pytest.mark.parametrize("exit", range(4))
def test_t9_the_gradient_is_that_of_one_step_by_hand(roles, make_batch, exit):
    objective = SGMDObjective(roles=roles)
    objective.grid = grid = StepGrid()
    seed = next(s for s in range(100) if exit == exit_of(objective, make_batch(seed=s)))
    backward(objective, "student", make_batch(seed=seed))
    actual = gradients(roles.student)
    roles.zero_grad()

    batch = make_batch(seed=seed)
    rollout = objective.rollout(batch, grad=False)
    sigma = objective.score_time.sample(len(batch), batch.generator)
    eps, level = batch.normal(), grid.sigmas[exit].item()
    with roles.updating("student"):
        x = rollout.noisy - level * roles.student.velocity(rollout.noisy, level, batch.cond)
        noisy = flow.noise(x, eps, sigma)
        u = roles.critic.x0(noisy, sigma, batch.cond)
        velocity = guided(roles.teacher, noisy.detach(), sigma, batch.cond, batch.uncond, 3.0)
        teacher = (noisy - sigma.view(-1, 1, 1, 1, 1) * velocity).detach()
        n = (x - teacher).abs().mean((1, 2, 3, 4)).detach()
        fisher = (u - teacher).square().mean((1, 2, 3, 4)) / n
        residual = (x.detach() - u).square().mean((1, 2, 3, 4)) / sigma
        (0.5 * (fisher - 0.1 * residual)).mean().backward()
    for one, other in zip(actual, gradients(roles.student), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)


def exit_of(objective: SGMDObjective, batch) -> int:
    objective.rollout(batch, grad=False)
    return int(batch.metrics["exit"])


def test_the_critic_minimises_the_velocity_error_of_a_fresh_sample(roles, make_batch):
    objective = SGMDObjective(roles=roles)
    loss = objective.losses("critic", make_batch(), 0)["contraction"]
    batch = make_batch()
    x = objective.rollout(batch, grad=False).x
    sigma = objective.score_time.sample(len(batch), batch.generator)
    eps = batch.normal()
    velocity = roles.critic.velocity(flow.noise(x, eps, sigma), sigma, batch.cond)
    torch.testing.assert_close(loss, (velocity - (eps - x)).square().mean() / 2)


def test_a_shared_sample_is_the_students_own(roles, make_batch):
    objective = SGMDObjective(roles=roles, fake_sample="shared")
    seen: list[tuple] = []

    watched = with_predict(roles.critic, lambda *args: seen.append(args[1:]) or wan.velocity(*args))
    objective.roles = Roles(student=roles.student, critic=watched, teacher=roles.teacher)
    for micro in range(2):
        backward(objective, "student", make_batch(seed=micro, micro=micro))
    roles.zero_grad()
    for micro in range(2):
        backward(objective, "critic", make_batch(seed=7 + micro, micro=micro))
    for student, critic in zip(seen[:2], seen[2:], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(student, critic, strict=True))
    assert not torch.equal(seen[0][0], seen[1][0]) and not seen[2][0].requires_grad
    assert gradients(roles.student) == [None] * len(roles.student.parameters())


def test_a_fresh_sample_has_an_exit_of_its_own(roles, make_batch):
    objective = SGMDObjective(roles=roles)
    exits = []
    for seed in range(8):
        for name in ("student", "critic"):
            batch = make_batch(seed=seed + (100 if name == "critic" else 0))
            objective.losses(name, batch, 0)
            exits.append(batch.metrics["exit"])
    assert exits[::2] != exits[1::2]


def test_micro_batches_have_one_exit_or_each_its_own(roles, make_batch):
    def exits(**fields):
        objective = SGMDObjective(roles=roles, **fields)
        return [exit_of(objective, make_batch(seed=3, micro=micro)) for micro in range(8)]

    assert len(set(exits())) == 1
    own = exits(exit_index="micro-batch")
    assert len(set(own)) > 1 and own[0] == exits()[0]
    assert own == exits(exit_index="micro-batch")


def test_score_times_may_follow_the_exit_step(roles, make_batch):
    objective, exits = SGMDObjective(roles=roles, ts_schedule=True, ts_schedule_max=True), set()
    levels = [*objective.grid.sigmas.tolist(), 0.0]
    for seed in range(12):
        batch = make_batch(100, seed=seed)
        sigma = objective.noised_sample(batch, grad=False).sigma
        exit = int(batch.metrics["exit"])
        low, high = max(levels[exit + 1], 0.02), min(levels[exit], 0.98)
        assert low - 1e-6 <= sigma.min() and sigma.max() <= high + 1e-6
        assert sigma.min() < low + 0.1 * (high - low) and sigma.max() > high - 0.1 * (high - low)
        exits.add(exit)
    assert exits == {0, 1, 2, 3}


def test_diversity_follows_the_chord_of_the_guided_teacher(roles, make_batch):
    objective = SGMDObjective(roles=roles, diversity=Diversity(weight=0.05))
    loss = objective.losses("student", make_batch(), 0)["diversity"]
    batch = make_batch()
    start = objective.rollout(batch, grad=False, first=1).start
    levels = [flow.shift(1 - i / 30, 5.0) for i in range(6)]
    noisy = start
    for sigma, following in zip(levels, levels[1:], strict=False):
        with torch.no_grad():
            velocity = guided(roles.teacher, noisy, sigma, batch.cond, batch.uncond, 3.0)
        noisy = noisy + (following - sigma) * velocity
    chord = (start - noisy) / (1 - levels[5])
    expected = 0.05 * (roles.student.velocity(start, 1.0, batch.cond) - chord).square().mean()
    torch.testing.assert_close(loss, expected)


def test_with_diversity_samples_never_leave_at_the_first_step(roles, make_batch):
    """Neither those of the student nor those of the critic, as in the official trainer."""
    plain, diverse = SGMDObjective(roles=roles), SGMDObjective(roles=roles, diversity=Diversity(anchor=1))
    exits: dict[tuple[bool, str], set] = {}
    for seed in range(24):
        for objective, role in itertools.product((plain, diverse), ("student", "critic")):
            with torch.no_grad():
                batch = make_batch(1, seed=seed)
                objective.losses(role, batch, 0)
            exits.setdefault((objective is diverse, role), set()).add(batch.metrics["exit"])
    for (with_diversity, _), levels in exits.items():
        assert levels == ({1, 2, 3} if with_diversity else {0, 1, 2, 3})


def test_metrics_are_logged_beside_the_losses(roles, make_batch):
    batch = make_batch(8)
    parts = backward(SGMDObjective(roles=roles), "student", batch)
    assert set(parts) == {"fisher", "negative_residual"} and parts["negative_residual"] < 0 < parts["fisher"]
    assert {"exit", "dmd2", "residual", "normaliser"} < set(batch.metrics)
    torch.testing.assert_close(-0.1 * batch.metrics["residual"], parts["negative_residual"].detach())


def test_sid_reaches_the_student_through_the_teacher_too(roles, make_batch):
    routes = {}
    for through in (True, False):
        objective = SiD(roles=roles, through_teacher=through)
        loss = backward(objective, "student", make_batch())["sid"]
        routes[through] = (loss.item(), gradients(roles.student))
        roles.zero_grad()
        assert gradients(roles.critic) == [None] * len(roles.critic.parameters())
    assert routes[True][0] == pytest.approx(routes[False][0], rel=1e-5)
    assert any(not torch.allclose(a, b) for a, b in zip(routes[True][1], routes[False][1], strict=True))
    batch = make_batch()
    objective = SiD(roles=roles)
    x = objective.rollout(batch, grad=False).x
    sigma = objective.score_time.sample(len(batch), batch.generator)
    noisy = flow.noise(x, batch.normal(), sigma)
    u, t = roles.critic.x0(noisy, sigma, batch.cond), objective.teacher_x0(noisy, sigma, batch)
    assert sid_loss(x, u, t).item() == pytest.approx(routes[True][0], rel=1e-5)


def test_one_to_one_is_the_default_and_other_ratios_are_tsg_fisher(roles):
    assert SGMDObjective(roles=roles).phases(0) == ("student", "critic")
    five = SGMDObjective(roles=roles, lam=0.0, schedule=UpdateSchedule(5))
    assert five.phases(0) == ("student", *5 * ("critic",))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": UpdateSchedule(5)}, "one to one"),
        ({"lam": -0.1}, "diverges"),
        ({"diversity": Diversity(), "grid": StepGrid((1000,))}, "two steps or more"),
    ],
)
def test_impossible_settings_are_refused(roles, fields, message):
    with pytest.raises(ValueError, match=message):
        SGMDObjective(roles=roles, **fields)


def test_an_impossible_anchor_is_refused():
    with pytest.raises(ValueError, match="0 < anchor <= steps"):
        Diversity(anchor=31)
