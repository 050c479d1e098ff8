"""Extra losses beside the matching loss of DMD2, and features of a role."""

from __future__ import annotations

import pytest
import torch
from fewstep.families import wan
from fewstep.train.dmd2 import DMD2


def brightness(roles, sample, batch, step):
    """Applies to samples of the first two exit steps, from step 3 on."""
    return sample.x.square().mean() if sample.exit < 2 and step >= 3 else None


def test_an_extra_loss_sees_the_sample_of_the_matching_loss(roles, make_batch):
    objective = DMD2(roles=roles, extra={"brightness": brightness})
    applied = set()
    for seed in range(12):
        batch, plain = make_batch(seed=seed), make_batch(seed=seed)
        parts = objective.losses("student", batch, 3)
        (sample,) = batch.rollouts
        active = sample.exit < 2
        assert sample.grid == objective.grid and sample.exit == batch.metrics["exit"]
        assert parts["brightness"] == (sample.x.square().mean() if active else 0)
        assert batch.metrics["brightness_active"] == active and parts["brightness"].requires_grad == active
        assert torch.equal(parts["dmd"], DMD2(roles=roles).losses("student", plain, 3)["dmd"])
        applied.add(active)
    assert applied == {True, False}


def test_extra_losses_know_the_step_and_are_for_the_student(roles, make_batch):
    objective = DMD2(roles=roles, extra={"brightness": brightness})
    early = [make_batch(seed=seed) for seed in range(12)]
    assert all(objective.losses("student", batch, 2)["brightness"] == 0 for batch in early)
    assert set(objective.losses("critic", make_batch(), 3)) == {"velocity"}


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_hidden_tokens_of_a_role_are_those_of_its_own_adapter(roles, make_batch, name):
    batch, role = make_batch(), roles[name]
    tokens = role.hidden_tokens(batch.normal(), 0.5, batch.cond, 0)
    start = make_batch()
    with role.use_adapter():
        expected = wan.hidden_tokens(role.network, start.normal(), torch.full((3,), 0.5), start.cond, 0)
    torch.testing.assert_close(tokens, expected)
    other = roles["teacher" if name == "student" else "student"]
    assert not torch.allclose(tokens, other.hidden_tokens(make_batch().normal(), 0.5, batch.cond, 0), atol=1e-3)
