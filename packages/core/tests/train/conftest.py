"""Tiny networks of the real class, and batches for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fewstep.testing import tiny
from fewstep.train.objective import Batch
from fewstep.train.roles import Roles, full_roles, lora_roles

SHAPE = (3, 2, 4, 4)


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """A batch for the tiny Wan: `size` prompts of 5 tokens, all chance from `seed`."""

    def make(size: int = 3, seed: int = 0, **fields) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        cond, uncond = torch.randn(size, 5, 8, generator=generator), torch.zeros(1, 5, 8)
        shared = torch.Generator().manual_seed(seed)
        chance = {"generator": generator, "shared": shared}
        return Batch(**{"cond": cond, "uncond": uncond, "shape": SHAPE, **chance, **fields})

    return make


@pytest.fixture(params=["full", "lora"])
def roles(request: pytest.FixtureRequest) -> Roles:
    """Student, critic and teacher from one tiny network, with weights of their own or as adapters.

    Student and critic are moved off the teacher, so that no difference is zero by accident.
    """
    made = full_roles(tiny.wan()) if request.param == "full" else lora(tiny.wan())
    torch.manual_seed(1)
    for name in ("student", "critic"):
        for weight in made[name].parameters():
            weight.data += 0.05 * torch.randn_like(weight)
    return made


def lora(network: torch.nn.Module) -> Roles:
    return lora_roles(network, rank=2, alpha=4.0, targets=("to_q", "to_v", "ffn.net.2"))
