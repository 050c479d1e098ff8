"""Alignment with a reference: token relations (S7), their alternatives by hand, and features of the teacher."""

from __future__ import annotations

import math

import pytest
import torch
from fewstep import flow
from fewstep.errors import UnsupportedModelError
from fewstep.train.roles import Role
from fewstep_salt.alignment import Features, make_alignment
from fewstep_salt.discrepancy import (
    energy_discrepancy,
    gaussian_discrepancy,
    mean_discrepancy,
    relation_distance,
)

DISCREPANCIES = (relation_distance, mean_discrepancy, gaussian_discrepancy, energy_discrepancy)
KINDS = ("trd", "mmd-linear", "mmd-rbf", "mmd-energy", "mse")


def tokens(seed=0, shape=(3, 8, 6)):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


def two(degrees):
    """Two tokens of one frame at an angle."""
    angle = math.radians(degrees)
    return torch.tensor([[[2.0, 0.0], [math.cos(angle), math.sin(angle)]]], requires_grad=True)


@pytest.mark.parametrize("degrees", [5, 25, 60, 90])
def test_s7_two_tokens_at_an_angle(degrees):
    student, parallel = two(degrees), torch.ones(1, 2, 2)
    loss = relation_distance(student, parallel, margin=0.1)
    assert loss.item() == pytest.approx(max(0.0, 1 - math.cos(math.radians(degrees)) - 0.1) / 2, abs=1e-6)
    loss.backward()
    assert student.grad.any().item() == (loss.item() > 0)


@pytest.mark.parametrize("discrepancy", DISCREPANCIES)
def test_every_discrepancy_of_equal_tokens_is_zero_and_trains_the_first_alone(discrepancy):
    own, other = (one.requires_grad_() for one in tokens())
    assert discrepancy(own.detach(), own.detach()).abs() < 1e-6
    loss = discrepancy(own, other)
    loss.backward()
    assert loss > 0.01 and own.grad.isfinite().all() and own.grad.any() and other.grad is None


@pytest.mark.parametrize("discrepancy", DISCREPANCIES)
def test_every_discrepancy_ignores_the_length_and_order_of_tokens(discrepancy):
    own, other = tokens()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    moved = discrepancy(3 * own[:, order], other[:, order])
    torch.testing.assert_close(moved, discrepancy(own, other), rtol=1e-5, atol=1e-6)


def test_only_relations_are_free_of_a_rotation():
    own, other = tokens()
    turned = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2)))[0]
    for discrepancy in DISCREPANCIES:
        same = torch.isclose(discrepancy(own @ turned, other), discrepancy(own, other), rtol=1e-4)
        assert same == (discrepancy is relation_distance)


def test_gradients_are_those_of_finite_differences():
    own, other = tokens(shape=(2, 5, 4))
    direction = 1e-2 * torch.randn(own.shape, generator=torch.Generator().manual_seed(3))
    for discrepancy in (relation_distance, mean_discrepancy, energy_discrepancy):  # the width of the other is fixed
        (slope,) = torch.autograd.grad(discrepancy(leaf := own.clone().requires_grad_(), other), leaf)
        difference = discrepancy(own + direction, other) - discrepancy(own - direction, other)
        assert difference.item() == pytest.approx(2 * (slope * direction).sum().item(), rel=0.05)


def test_discrepancies_of_one_token_by_hand():
    own, other = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 5.0]]])  # of length 1 they are at distance sqrt 2
    assert mean_discrepancy(own, other).item() == pytest.approx(2)
    assert energy_discrepancy(own, other).item() == pytest.approx(2 * math.sqrt(2))
    assert gaussian_discrepancy(own, other).item() == pytest.approx(2 - 2 / math.e)


def few(block=1):
    return Features(block=block)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_flows_into_the_sample_alone(roles, make_batch, kind):
    batch = make_batch()
    x, reference = batch.normal().requires_grad_(), batch.normal().requires_grad_()
    with roles.updating("student"):
        loss = make_alignment(kind, features=few(), margin=0.01)(roles.teacher, x, reference, batch)
        loss.backward()
    assert loss > 0 and x.grad.any() and reference.grad is None
    assert all(weight.grad is None for role in roles.values() for weight in role.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_aligned_with_itself(roles, make_batch, kind):
    x = make_batch().normal()
    loss = make_alignment(kind, features=few(), margin=0.0)(roles.teacher, x, x.clone(), make_batch())
    assert loss.abs() < 1e-5


def test_features_are_those_of_the_teacher_at_one_level_and_noise_for_both(roles, make_batch):
    batch = make_batch(40)
    x, reference = batch.normal(), batch.normal()
    own, other = few(0).pair(roles.teacher, x, reference, batch)
    again = make_batch(40)
    again.normal(), again.normal()
    sigma = torch.randint(0, 200, (40,), generator=again.generator) / 1000
    sigma = flow.shift(sigma, 5.0).clamp(0.02, 0.98)
    assert sigma.min() >= 0.02 and sigma.max() <= 0.5541 and sigma.max() > 0.5
    eps = again.normal()
    for found, clean in ((own, x), (other, reference)):
        expected = roles.teacher.hidden_tokens(flow.noise(clean, eps, sigma), sigma, batch.cond, 0)
        torch.testing.assert_close(found, expected.flatten(0, 1))
    assert own.shape == (40 * 2, 4, 24)


def test_a_block_that_is_not_there_and_unknown_names_are_refused(roles, make_batch):
    x = make_batch().normal()
    with pytest.raises(ValueError, match="block 20 is not among the 2 blocks"):
        make_alignment()(roles.teacher, x, x, make_batch())
    with pytest.raises(ValueError, match="mmd-energy and mse"):
        make_alignment("gram")
    with pytest.raises(ValueError, match="margin"):
        make_alignment(margin=-0.1)
    with pytest.raises(UnsupportedModelError, match="Linear"):
        make_alignment(features=few())(Role(torch.nn.Linear(1, 1)), x, x, make_batch())
