"""End points, loss and defect against the closed forms of the method card, in float64: S1 to S4 and S14."""

from __future__ import annotations

import math

import pytest
import torch
from fewstep import flow
from fewstep.flow import StepGrid
from fewstep_salt.consistency import end_points, semigroup_loss
from fewstep_salt.defect import defect_at, defect_of
from fewstep_salt.steps import L2, L4, L8, Triple, TripleSampler
from torch.autograd import grad

F64 = {"dtype": torch.float64}
TRIPLES = list(TripleSampler().triples())
CARD = Triple(5 / 6, 0.75, 0.625)


def unit(size: int = 1) -> torch.Tensor:
    return torch.ones(size, 1, **F64)


def ends(field, noisy, triple):
    return end_points(noisy, field(noisy, triple.start), triple, field)


@pytest.mark.parametrize("triple", TRIPLES)
def test_s1_the_loss_of_the_consistent_field_is_zero(fields, triple):
    noisy = torch.linspace(-3, 3, 7, **F64)[:, None]
    assert semigroup_loss(*ends(fields["sc-zero"], noisy, triple), triple, weight="one") < 1e-15**2


@pytest.mark.parametrize(
    ("name", "direct", "composed", "squared"),
    [
        ("sc-zero", 0.886364, 0.886364, 0.0),
        ("flow-map", 0.899256, 0.904935, 2.262e-5),
        ("teacher", 0.764851, 0.771274, 2.893e-5),
    ],
)
def test_s1_s2_values_of_the_card(fields, name, direct, composed, squared):
    found = ends(fields[name], unit(), CARD)
    assert found.direct.item() == pytest.approx(direct, abs=5.1e-7)
    assert found.composed.item() == pytest.approx(composed, abs=5.1e-7)
    variance = (1 - CARD.start) ** 2 * 0.25 + CARD.start**2
    loss = semigroup_loss(*found, CARD, weight="one").item()
    assert variance * loss == pytest.approx(squared, abs=5.1e-9)  # the field is linear: E x^2 is a factor


S3 = {
    ("sc-zero", 0.0): (0.25, 0.25, 0.25, 0.25),
    ("sc-zero", 1.0): (0.25, 0.2087, 0.1590, 0.1133),
    ("flow-map", 0.0): (0.25, 0.2995, 0.4006, 0.5691),
    ("flow-map", 1.0): (0.25, 0.25, 0.25, 0.25),
    ("teacher", 0.0): (0.0, 0.0025, 0.0198, 0.0724),
    ("teacher", 1.0): (0.0, 0.0025, 0.0190, 0.0572),
}


@pytest.mark.parametrize(("name", "eta"), S3)
def test_s3_variance_after_k_steps(fields, name, eta):
    """Fields are linear, so a step multiplies the variance and fresh noise adds to it."""
    for grid, expected in zip((StepGrid((1000,)), L2, L4, L8), S3[name, eta], strict=True):
        variance, levels = 1.0, [*grid.sigmas.tolist(), 0.0]
        for level, following in zip(levels, levels[1:], strict=False):
            mean, sd = flow.cps(unit(), fields[name](unit(), level), level, following, eta)
            variance = variance * mean.item() ** 2 + sd**2
        assert variance == pytest.approx(expected, abs=5.1e-5)


@pytest.fixture
def network():
    """A random velocity with two layers that also sees the level."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(a, b, generator=generator, **F64) / 3 for a, b in ((13, 16), (16, 12)))
    weights = [first.requires_grad_(), second.requires_grad_()]

    def velocity(noisy, level):
        wide = torch.cat([noisy.flatten(1), torch.full((len(noisy), 1), level, **F64)], 1)
        return ((wide @ weights[0]).tanh() @ weights[1]).view_as(noisy)

    velocity.weights = weights
    return velocity


@pytest.fixture
def noisy():
    return torch.randn(3, 2, 3, 2, generator=torch.Generator().manual_seed(1), **F64)


def close(one, other, tolerance=1e-12):
    torch.testing.assert_close(one, torch.as_tensor(other, **F64), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("triple", [TRIPLES[0], TRIPLES[9], TRIPLES[-1], CARD])
def test_s4_identities_on_a_random_network(network, noisy, triple):
    s, m, e = triple
    v_s = network(noisy, s)
    found = end_points(noisy, v_s, triple, network)
    halfway = noisy - (s - m) * v_s
    v_m = network(halfway, m).detach()
    close(found.direct - found.composed, -(m - e) * (v_s - v_m))
    loss = semigroup_loss(*found, triple)
    close(loss, (1 - s) * (m - e) ** 2 * (v_s - v_m).square().mean())
    clean = (noisy - s * v_s) - (halfway - m * v_m)
    close(loss, (1 - s) * ((m - e) / m) ** 2 * clean.square().mean())
    (slope,) = grad(loss, v_s, retain_graph=True)
    close(slope, 2 * (1 - s) * (s - e) * (m - e) * (v_s - v_m) / v_s.numel())


def test_s4_a_field_of_the_level_alone(noisy):
    for triple in TRIPLES:
        found = ends(lambda x, t: torch.full_like(x, math.sin(5 * t)), noisy, triple)
        s, m, e = triple
        close(found.direct - found.composed, torch.full_like(noisy, -(m - e) * (math.sin(5 * s) - math.sin(5 * m))))


def test_s4_the_gradient_goes_through_the_first_prediction_only(network, noisy):
    triple, first = TRIPLES[9], network.weights
    v_s = network(noisy, triple.start)
    free = torch.ones((), requires_grad=True, **F64)
    found = end_points(noisy.requires_grad_(), v_s, triple, lambda x, t: free * network(x, t))
    loss = semigroup_loss(*found, triple)
    assert not found.composed.requires_grad
    assert grad(loss, [free], allow_unused=True, retain_graph=True) == (None,)
    through = torch.autograd.grad(loss, first, retain_graph=True)
    slope = grad(loss, v_s, retain_graph=True)[0]
    expected = torch.autograd.grad(network(noisy.detach(), triple.start), first, slope)
    for one, other in zip(through, expected, strict=True):
        close(one, other)


def test_the_loss_hides_no_gradient_that_a_composed_end_has(network, noisy):
    composed = noisy.clone().requires_grad_()
    loss = semigroup_loss(network(noisy, 0.5), composed, CARD)
    assert grad(loss, composed, allow_unused=True) == (None,)


def test_the_velocity_target_is_the_option_of_the_released_code(network, noisy):
    s, m, e = triple = TRIPLES[9]
    v_s = network(noisy, s)
    v_m = network(noisy - (s - m) * v_s, m)
    target = (((s - m) * v_s + (m - e) * v_m) / (s - e)).detach()
    found = end_points(noisy, v_s, triple, network)
    close(semigroup_loss(*found, triple, target="velocity"), (1 - s) * (v_s - target).square().mean())


def test_weights_are_one_minus_s_or_one(network, noisy):
    for triple in TRIPLES:
        found = ends(network, noisy, triple)
        plain = semigroup_loss(*found, triple, weight="one")
        close(semigroup_loss(*found, triple), (1 - triple.start) * plain)


def rays(field, scale=1.0):
    states, noisy = {}, scale * torch.linspace(-2, 3, 9, **F64)[:, None]
    for level, following in zip(L8.sigmas.tolist(), [*L8.sigmas.tolist()[1:], 0.0], strict=True):
        states[level] = noisy, field(noisy, level)
        noisy = flow.euler(*states[level], level, following)
    return states


def test_s14_the_defect_is_zero_for_the_consistent_field_only(fields):
    values = {name: defect_at(rays(field), TRIPLES, field).value for name, field in fields.items()}
    assert values["sc-zero"] < 1e-30 and min(values["flow-map"], values["teacher"]) > 1e-3


def test_s14_the_defect_does_not_depend_on_the_scale(fields):
    for name in ("flow-map", "teacher"):
        one, other = (defect_at(rays(fields[name], scale), TRIPLES, fields[name]) for scale in (1.0, 7.0))
        assert one.value == pytest.approx(other.value, rel=1e-12)
        assert one.of(TRIPLES[3]) == pytest.approx(other.of(TRIPLES[3]), rel=1e-12)


def test_s14_the_defect_is_the_ratio_of_sums_over_samples_and_triples(network, noisy):
    states = {level: (noisy, network(noisy, level)) for level in L8.sigmas.tolist()}
    calls = []

    def counted(x, t):
        calls.append(t)
        return network(x, t)

    found = defect_at(states, TRIPLES, counted)
    assert len(calls) == len({triple[:2] for triple in TRIPLES}) == 20
    pairs = [(triple, ends(network, noisy, triple)) for triple in TRIPLES]
    gaps = sum((one.direct - one.composed).square().sum() for _, one in pairs)
    moves = sum((one.direct - noisy).square().sum() for _, one in pairs)
    assert found.value == pytest.approx((gaps / moves).item(), rel=1e-12)
    assert (found + found).value == pytest.approx(found.value, rel=1e-12)
    assert (found + found).gaps[CARD] == 2 * found.gaps[CARD]


def test_the_defect_of_a_role_is_on_its_own_rollout(roles, make_batch):
    batch = make_batch()
    start, student = batch.normal(), roles.student
    found = defect_of(student, batch.cond, start)
    level, m, e = TRIPLES[4]
    with torch.no_grad():
        noisy = start - (1 - level) * student.velocity(start, 1.0, batch.cond)
        expected = ends(lambda x, t: student.velocity(x, t, batch.cond), noisy, TRIPLES[4])
    assert found.gaps[TRIPLES[4]] == pytest.approx(
        (expected.direct - expected.composed).square().sum().item(), rel=1e-4
    )
    assert set(found.gaps) == set(TRIPLES) and 0 < found.value < 1
