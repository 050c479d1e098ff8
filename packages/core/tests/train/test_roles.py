"""Roles: what is trained, what is shared, and where gradients go."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from fewstep import flow
from fewstep.families import wan
from fewstep.train import adapters
from fewstep.train.conditions import each
from fewstep.train.roles import Role, full_roles, guided, lora_roles


def inputs(size: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(size, 3, 2, 4, 4, generator=generator)
    return noisy, torch.rand(size, generator=generator), torch.randn(size, 5, 8, generator=generator)


def test_a_role_predicts_what_its_network_does_at_the_exact_timestep():
    network = wan.tiny()
    noisy, sigma, cond = inputs()
    expected = network(hidden_states=noisy, timestep=1000 * sigma, encoder_hidden_states=cond, return_dict=False)[0]
    role = Role(network)
    assert torch.equal(role.velocity(noisy, sigma, cond), expected)
    assert torch.equal(role.velocity(noisy, 0.9375, cond), role.velocity(noisy, torch.full((3,), 0.9375), cond))
    assert not torch.equal(role.velocity(noisy, 0.9375, cond), role.velocity(noisy, 0.938, cond))
    assert torch.equal(role.x0(noisy, sigma, cond), flow.x0_from_velocity(noisy, expected, sigma))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_predictions_are_at_least_float32(dtype):
    noisy, sigma, cond = inputs()
    velocity = Role(wan.tiny().to(dtype)).velocity(noisy, sigma, cond)
    assert velocity.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_autocast_runs_in_half_precision_with_weights_in_float32():
    noisy, sigma, cond = inputs()
    network = wan.tiny()
    exact, rough = Role(network), Role(network, autocast=torch.bfloat16)
    difference = (exact.velocity(noisy, sigma, cond) - rough.velocity(noisy, sigma, cond)).abs().max()
    assert 0 < difference < 0.1
    assert {weight.dtype for weight in rough.parameters()} == {torch.float32}


@pytest.mark.parametrize("scale", [1, 3.0, 4.0])
def test_guidance_in_one_call_equals_two(scale):
    role, (noisy, sigma, cond) = Role(wan.tiny()), inputs()
    uncond = inputs(1, seed=5)[2]
    with_prompt = role.velocity(noisy, sigma, cond)
    without = role.velocity(noisy, sigma, uncond.expand(3, -1, -1))
    expected = without + scale * (with_prompt - without)
    torch.testing.assert_close(guided(role, noisy, sigma, cond, uncond, scale), expected, rtol=1e-4, atol=1e-5)


def test_conditions_may_be_tuples_of_tensors():
    class Texts(NamedTuple):
        embeddings: torch.Tensor
        pooled: torch.Tensor
        labels: torch.Tensor

    def predict(network, noisy, sigma, cond):
        assert cond.labels.dtype == torch.int64 and cond.embeddings.dtype == torch.float32
        one_each = cond.pooled + cond.embeddings.mean((1, 2)) + cond.labels
        return noisy * one_each.view(-1, 1, 1, 1, 1)

    role = Role(wan.tiny(), predict=predict)
    noisy, sigma, embeddings = inputs()
    cond = Texts(embeddings.to(torch.bfloat16), torch.tensor([1.0, 2, 3]), torch.tensor([1, 2, 3]))
    uncond = Texts(torch.zeros(1, 5, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    with_prompt = role.velocity(noisy, sigma, cond)
    without = role.velocity(noisy, sigma, each(lambda one: one.expand(3, *one.shape[1:]), uncond))
    both = guided(role, noisy, sigma, cond, uncond, 3.0)
    torch.testing.assert_close(both, without + 3 * (with_prompt - without))


def test_student_and_critic_start_as_the_teacher():
    network, given = wan.tiny(), inputs()
    expected = Role(network).velocity(*given)
    for roles in (full_roles(wan.tiny()), lora_roles(wan.tiny(), rank=2, alpha=2, targets=("to_q", "to_k"))):
        assert list(roles) == ["student", "critic", "teacher"]
        for role in roles.values():
            torch.testing.assert_close(role.velocity(*given), expected)


def test_adapters_share_the_base_and_train_only_themselves():
    network = wan.tiny()
    roles = lora_roles(network, rank=2, alpha=4.0, targets=("to_q", "to_v"))
    assert len(roles.networks()) == 1
    student, critic = set(roles.student.named_parameters()), set(roles.critic.named_parameters())
    assert student and critic and not student & critic
    assert {name for name, weight in network.named_parameters() if weight.requires_grad} == student | critic
    assert roles.student.state().keys() == student
    assert not any(adapters.is_adapter(name) for name in roles.teacher.named_parameters())


def test_adapters_on_a_half_precision_base_are_float32():
    roles = lora_roles(wan.tiny().to(torch.bfloat16), rank=2, alpha=2, targets=("to_q",))
    assert {weight.dtype for weight in roles.student.parameters()} == {torch.float32}
    assert roles.student.velocity(*inputs()).dtype == torch.float32


def test_roles_on_one_base_do_not_see_each_other(roles):
    noisy, sigma, cond = inputs()
    before = {name: role.velocity(noisy, sigma, cond) for name, role in roles.items()}
    assert not torch.allclose(before["student"], before["critic"])
    for weight in roles.student.parameters():
        weight.data.zero_()
    for name in ("critic", "teacher"):
        assert torch.equal(roles[name].velocity(noisy, sigma, cond), before[name])


def test_frozen_lets_the_gradient_through_to_the_input(roles):
    noisy, sigma, cond = inputs()
    noisy.requires_grad_()
    with roles.critic.frozen():
        roles.critic.velocity(noisy, sigma, cond).square().sum().backward()
    assert noisy.grad.abs().sum() > 0
    assert all(weight.grad is None and weight.requires_grad for weight in roles.critic.parameters())


def test_a_student_gradient_through_the_critic_equals_that_of_separate_networks():
    """Two adapters of one base in one graph: the critic's forward must not disturb the student's backward."""
    noisy, sigma, cond = inputs()

    def gradients(roles):
        with roles.updating("student"):
            x = roles.student.x0(noisy, 1.0, cond)
            roles.critic.x0(flow.noise(x, noisy, sigma), sigma, cond).square().mean().backward()
        return {name: weight.grad for name, weight in roles.student.named_parameters().items()}

    def make(seed=3):
        made = lora_roles(wan.tiny(), rank=2, alpha=4.0, targets=("to_q", "to_v"))
        generator = torch.Generator().manual_seed(seed)
        for weight in (*made.student.parameters(), *made.critic.parameters()):
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
        return made

    shared, other = make(), make()
    separate = type(shared)(student=shared.student, critic=other.critic)
    actual = gradients(shared)
    shared.zero_grad()
    expected = gradients(separate)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-7)
    assert any(gradient.abs().sum() > 0 for gradient in expected.values())


def test_recomputed_activations_give_the_same_gradients(roles):
    """Also where one backward pass recomputes blocks of two adapters on one base."""
    noisy, sigma, cond = inputs()

    def gradients():
        roles.zero_grad()
        with roles.updating("student"):
            x = roles.student.x0(noisy, 1.0, cond)
            roles.critic.x0(flow.noise(x, noisy, sigma), sigma, cond).square().mean().backward()
        return [weight.grad.clone() for weight in roles.student.parameters()]

    expected = gradients()
    for network in roles.networks():
        network.enable_gradient_checkpointing(adapters.checkpointed(network))
    for recomputed, exact in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(recomputed, exact)


def test_an_unknown_role_is_named(roles):
    with pytest.raises(AttributeError, match="no role 'fake', only student, critic, teacher"):
        roles.fake  # noqa: B018
