"""Muon: which weights it takes, how far it moves them, and what a checkpoint holds of it."""

from __future__ import annotations

import copy

import pytest
import torch
from fewstep.families import wan
from fewstep.train.optim import AdamW, Muon, optimiser_state
from fewstep.train.roles import Role

RATE = 0.01


@pytest.fixture
def networks():
    """Two equal networks with equal gradients."""
    one = wan.tiny()
    torch.manual_seed(3)
    for weight in one.parameters():
        weight.grad = torch.randn_like(weight)
    other = copy.deepcopy(one)
    for weight, same in zip(other.parameters(), one.parameters(), strict=True):
        weight.grad = same.grad.clone()
    return one, other


def orthogonalised(gradient: torch.Tensor) -> torch.Tensor:
    """Five steps of the quintic Newton-Schulz iteration of the Muon post, in float64."""
    x = gradient.double() / gradient.double().norm()
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.float()


def moved(network: torch.nn.Module, settings: AdamW) -> dict[str, torch.Tensor]:
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    settings.make(Role(network)).step()
    return {name: weight.detach() - before[name] for name, weight in network.named_parameters()}


def test_matrices_of_the_blocks_move_orthogonally_and_the_rest_as_with_adamw(networks):
    muon = moved(networks[0], Muon(lr=RATE, weight_decay=0.0))
    adamw = moved(networks[1], AdamW(lr=RATE, weight_decay=0.0))
    matrices = {name for name, change in muon.items() if change.ndim == 2 and name.startswith("blocks.")}
    assert len(matrices) == 2 * 10  # of each block: q, k, v, o twice, and the two of the feed-forward network
    for name in matrices:
        expected = (
            -RATE * 0.2 * max(muon[name].shape) ** 0.5 * orthogonalised(dict(networks[0].named_parameters())[name].grad)
        )
        assert (muon[name] - expected).norm() < 1e-4 * expected.norm(), name  # torch's own bfloat16 is 0.03 off
    for name in muon.keys() - matrices:
        assert torch.equal(muon[name], adamw[name]), name


def test_a_checkpoint_has_the_same_names_before_and_after_a_step(networks):
    role = Role(networks[0])
    made = Muon(lr=RATE).make(role)
    before = set(optimiser_state(made, role))
    made.step()
    after = optimiser_state(made, role)
    assert set(after) == before
    assert after["blocks.0.ffn.net.2.weight/momentum_buffer"].abs().max() > 0
    assert {"proj_out.weight/exp_avg", "proj_out.weight/exp_avg_sq", "proj_out.weight/step"} <= before
    assert not any(name.startswith("blocks.0.ffn.net.2.weight/exp") for name in before)


def test_kernels_of_repeated_layers_move_like_their_matrix():
    kernels, flat = (torch.nn.ModuleList([torch.nn.Conv2d(3, 4, 3)]), torch.nn.ModuleList([torch.nn.Linear(27, 4)]))
    with torch.no_grad():
        flat[0].weight.copy_(kernels[0].weight.flatten(1))
    gradient = torch.randn(4, 27, generator=torch.Generator().manual_seed(0))
    settings = Muon(lr=RATE, weight_decay=0.0)
    made = [settings.make(Role(network)) for network in (kernels, flat)]
    for _ in range(2):
        kernels[0].weight.grad, flat[0].weight.grad = gradient.view(4, 3, 3, 3).clone(), gradient.clone()
        for optimiser in made:
            optimiser.step()
    assert torch.equal(kernels[0].weight.flatten(1), flat[0].weight)
    states = [optimiser_state(optimiser, Role(n)) for optimiser, n in zip(made, (kernels, flat), strict=True)]
    assert torch.equal(*(state["0.weight/momentum_buffer"] for state in states))
