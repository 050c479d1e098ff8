"""Extra losses of one package beside the matching loss of another: they meet in core alone."""

from __future__ import annotations

import pytest
import torch
from fewstep.families import wan
from fewstep.train.objective import Batch
from fewstep.train.roles import Roles, full_roles
from fewstep_salt.alignment import Features, make_alignment
from fewstep_salt.losses import AlignmentLoss, SemigroupLoss
from fewstep_salt.steps import L4, L8
from fewstep_sgmd.objective import SGMDObjective


@pytest.fixture
def roles() -> Roles:
    made = full_roles(wan.tiny())
    torch.manual_seed(1)
    for weight in (*made.student.parameters(), *made.critic.parameters()):
        weight.data += 0.05 * torch.randn_like(weight)
    return made


def batch(seed: int) -> Batch:
    generator, shared = (torch.Generator().manual_seed(seed) for _ in range(2))
    cond, uncond = torch.ones(2, 5, 8), torch.zeros(1, 5, 8)
    return Batch(cond=cond, uncond=uncond, shape=(3, 2, 4, 4), generator=generator, shared=shared)


@pytest.mark.parametrize("grid", [L8, L4], ids=["semigroup", "alignment"])
def test_losses_of_salt_stand_beside_sgmd(roles, grid):
    alignment = make_alignment(features=Features(block=1), margin=0.0)
    extra = {"semigroup": SemigroupLoss(weight="one"), "alignment": AlignmentLoss(alignment=alignment, start=0)}
    applied = dict.fromkeys(extra, 0.0)
    for seed in range(6):
        plain, both = batch(seed), batch(seed)
        before = SGMDObjective(roles=roles, grid=grid).losses("student", plain, 0)
        parts = SGMDObjective(roles=roles, grid=grid, extra=extra).losses("student", both, 0)
        assert parts.keys() == before.keys() | extra.keys()
        assert all(torch.equal(parts[name], before[name]) for name in before)
        for name in extra:
            active = both.metrics[f"{name}_active"]
            assert (parts[name] > 0) == bool(active)
            applied[name] += active
    assert (applied["semigroup"] > 0) == (grid == L8) and (applied["alignment"] > 0) == (grid == L4)
