"""SC-DMD on tiny Wan roles: the extra losses beside DMD2, what they train, and when they apply."""

from __future__ import annotations

import pytest
import torch
from fewstep.families import wan
from fewstep.testing.objective import ObjectiveCase, ObjectiveSuite
from fewstep.train.dmd2 import DMD2
from fewstep.train.objective import UpdateSchedule
from fewstep.train.roles import Role, Roles
from fewstep.train.rollout import rollout
from fewstep_salt.alignment import Features, make_alignment
from fewstep_salt.consistency import end_points, semigroup_loss
from fewstep_salt.losses import AlignmentLoss, SemigroupLoss
from fewstep_salt.steps import L2, L4, L8, StepMix, TripleSampler


def aligned(kind="trd", **fields) -> AlignmentLoss:
    features = Features(block=1)
    return AlignmentLoss(alignment=make_alignment(kind, features=features, margin=0.001), start=0, **fields)


class TestSCDMD(ObjectiveSuite):
    @pytest.fixture(params=["semigroup", "both"])
    def case(self, request, roles, make_batch):
        extra, grid = {
            "semigroup": ({"semigroup": SemigroupLoss()}, L8),
            "both": ({"semigroup": SemigroupLoss(target="velocity"), "alignment": aligned()}, L2),
        }[request.param]
        objective = DMD2(roles=roles, grid=grid, schedule=UpdateSchedule(1), extra=extra)
        return ObjectiveCase(objective=objective, batch=lambda seed: make_batch(seed=seed))


def at_exit(exit, grid, make_batch, roles, **fields):
    """A seed whose rollout over `grid` leaves at this step."""
    objective = DMD2(roles=roles, grid=grid)
    for seed in range(200):
        batch = make_batch(1, seed=seed)
        objective.rollout(batch, grad=False)
        if batch.metrics["exit"] == exit:
            return seed
    raise AssertionError


def losses(roles, batch, grid=L8, step=0, **extra):
    return DMD2(roles=roles, grid=grid, extra=extra).losses("student", batch, step)


def gradients(role: Role) -> list[torch.Tensor]:
    return [weight.grad.clone() for weight in role.parameters()]


@pytest.mark.parametrize("exit", [1, 3, 6])
def test_the_loss_and_its_gradient_are_those_of_one_triple_by_hand(roles, make_batch, exit):
    seed = at_exit(exit, L8, make_batch, roles)
    batch = make_batch(seed=seed)
    with roles.updating("student"):
        found = losses(roles, batch, semigroup=SemigroupLoss(scale=0.5))["semigroup"]
        found.backward()
    actual = gradients(roles.student)
    roles.zero_grad()

    again, sampler = make_batch(seed=seed), TripleSampler()
    sample = DMD2(roles=roles, grid=L8).rollout(again, grad=False)
    triple = sampler.draw(exit, again.shared)
    s, m, e = triple
    with torch.no_grad():
        v_m = roles.student.velocity(sample.noisy + (m - s) * sample.velocity, m, again.cond)
    with roles.updating("student"):
        v_s = roles.student.velocity(sample.noisy, s, again.cond)
        expected = 0.5 * (1 - s) * (m - e) ** 2 * (v_s - v_m).square().mean()
        # the loss itself scales with (m - e)^2, its gradient with (s - e)(m - e): the composed end is a target
        ((s - e) / (m - e) * expected).backward()
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-4, atol=1e-9)
    for one, other in zip(actual, gradients(roles.student), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-8)


def test_it_costs_one_forward_without_gradient(roles, make_batch):
    seen = []

    def watched(network, noisy, sigma, cond):
        seen.append((torch.is_grad_enabled(), sigma[0].item()))
        return wan.velocity(network, noisy, sigma, cond)

    student = Role(roles.student.network, roles.student.adapter, watched)
    watching = Roles(student=student, critic=roles.critic, teacher=roles.teacher)
    seed = at_exit(2, L8, make_batch, roles)
    calls = {}
    for name, extra in (("plain", {}), ("semigroup", {"semigroup": SemigroupLoss()})):
        seen.clear()
        losses(watching, make_batch(seed=seed), **extra)
        calls[name] = list(seen)
    *before, last = calls["semigroup"]
    assert before == calls["plain"] and not last[0] and last[1] < before[-1][1]
    assert [grad for grad, _ in before] == [False, False, True]


def test_the_matching_loss_is_untouched(roles, make_batch):
    plain = losses(roles, make_batch())
    more = losses(roles, make_batch(), semigroup=SemigroupLoss(), alignment=aligned())
    assert torch.equal(plain["dmd"], more["dmd"]) and set(more) == {"dmd", "semigroup", "alignment"}


def active(roles, make_batch, grid, exit, loss, step=0):
    seed = at_exit(exit, grid, make_batch, roles)
    batch = make_batch(seed=seed)
    value = losses(roles, batch, grid, step, extra=loss)["extra"]
    assert (value > 0) <= bool(batch.metrics["extra_active"])
    return bool(batch.metrics["extra_active"])


@pytest.mark.parametrize("roles", ["full"], indirect=True)
def test_semigroup_is_for_the_dense_list_and_not_for_its_last_exit(roles, make_batch):
    one = SemigroupLoss(weight="one")
    assert [active(roles, make_batch, L8, exit, one) for exit in (0, 3, 6, 7)] == [True, True, True, False]
    assert not any(active(roles, make_batch, grid, 0, one) for grid in (L4, L2))


@pytest.mark.parametrize("roles", ["full"], indirect=True)
def test_alignment_is_for_sparser_lists_after_the_first_exit_and_the_warm_up(roles, make_batch):
    one = aligned()
    assert [active(roles, make_batch, L2, exit, one) for exit in (0, 1)] == [False, True]
    assert [active(roles, make_batch, L4, exit, one) for exit in (0, 2)] == [False, True]
    assert not active(roles, make_batch, L8, 3, one)
    late = AlignmentLoss(alignment=one.alignment, start=10)
    assert [active(roles, make_batch, L2, 1, late, step) for step in (9, 10)] == [False, True]


def test_the_reference_is_the_same_noise_in_more_steps(roles, make_batch):
    seed = at_exit(1, L2, make_batch, roles)
    batch = make_batch(seed=seed)
    found = losses(roles, batch, L2, alignment=aligned("mse", scale=1.0))["alignment"]
    sample = batch.rollouts[-1]
    reference = rollout(roles.student, L4, batch.cond, sample.start, 2, grad=False)
    assert reference.sigma == sample.sigma
    torch.testing.assert_close(found, (sample.x - reference.x).square().mean())


def test_a_reference_over_the_same_list_is_the_sample_and_costs_nothing(roles, make_batch):
    """S12 for Euler steps: bit for bit, so that the alignment is exactly zero."""
    batch = make_batch(seed=at_exit(1, L2, make_batch, roles))
    sample = DMD2(roles=roles, grid=L2).rollout(batch, grad=True)
    reference = rollout(roles.student, L2, batch.cond, sample.start, 1, grad=False)
    assert torch.equal(sample.x, reference.x)
    assert aligned().alignment(roles.teacher, sample.x, reference.x, batch) == 0


def test_pieces_of_one_sample_are_its_loss(roles, make_batch):
    batch, loss = make_batch(), SemigroupLoss(scale=1.0)
    triple = list(loss.sampler.triples())[7]
    noisy, v_s = batch.normal(), batch.normal()

    def velocity(x, level):
        return level * x.sin()

    whole = loss.of(triple, [(noisy, v_s, velocity)])
    pieces = [(a, b, velocity) for a, b in zip(noisy.split(1, 2), v_s.split(1, 2), strict=True)]
    torch.testing.assert_close(loss.of(triple, pieces), whole)
    torch.testing.assert_close(whole, semigroup_loss(*end_points(noisy, v_s, triple, velocity), triple))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SemigroupLoss(scale=-1.0), "0 or more"),
        (lambda: SemigroupLoss(weight="two"), "one-minus-s, one"),
        (lambda: SemigroupLoss(target="x0"), "latent, velocity"),
        (lambda: AlignmentLoss(scale=-1.0), "0 or more"),
        (lambda: AlignmentLoss(start=-1), "0 or more"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_error_in_an_extra_loss_is_not_swallowed(roles, make_batch):
    beyond = AlignmentLoss(alignment=make_alignment(), start=0, mix=StepMix((L4, L2), (0.5, 0.5)))
    batch = make_batch(seed=at_exit(1, L2, make_batch, roles))
    with pytest.raises(ValueError, match="block 20"):
        losses(roles, batch, L2, alignment=beyond)
