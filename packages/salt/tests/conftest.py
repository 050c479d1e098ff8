"""Tiny Wan roles, batches for them, and Gaussian velocity fields in one dimension."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from fewstep.families import wan
from fewstep.train.objective import Batch
from fewstep.train.roles import Roles, full_roles, lora_roles

VARIANCE = 0.25
"""Variance of the data."""


def sc_zero(x, t):
    """Constant along its own rays, and its Euler steps from N(0, 1) end at the variance of the data."""
    constant = math.sqrt(VARIANCE) / (1 - math.sqrt(VARIANCE))
    return x / (t + constant)


def flow_map(x, t):
    """The exact flow map of the probability-flow ODE as a denoiser."""
    return x * (1 - math.sqrt(VARIANCE / ((1 - t) ** 2 * VARIANCE + t * t))) / t


def teacher(x, t):
    """The velocity of the probability-flow ODE itself."""
    return x * (t - (1 - t) * VARIANCE) / ((1 - t) ** 2 * VARIANCE + t * t)


@pytest.fixture
def fields() -> dict[str, Callable]:
    """Velocities ``(x, t)`` for data of variance `VARIANCE`, by name."""
    return {"sc-zero": sc_zero, "flow-map": flow_map, "teacher": teacher}


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """A batch for the tiny Wan: `size` prompts of 5 tokens, all chance from `seed`."""

    def make(size: int = 3, seed: int = 0, **fields) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        cond, uncond = torch.randn(size, 5, 8, generator=generator), torch.zeros(1, 5, 8)
        chance = {"generator": generator, "shared": torch.Generator().manual_seed(seed)}
        return Batch(**{"cond": cond, "uncond": uncond, "shape": (3, 2, 4, 4), **chance, **fields})

    return make


@pytest.fixture(params=["full", "lora"])
def roles(request: pytest.FixtureRequest) -> Roles:
    """Student, critic and teacher of one tiny Wan, with weights of their own or as adapters, moved apart."""
    make = {"full": full_roles, "lora": partial(lora_roles, rank=2, alpha=4.0, targets=("to_q", "to_v", "ffn.net.2"))}
    made = make[request.param](wan.tiny())
    torch.manual_seed(1)
    for name in ("student", "critic"):
        for weight in made[name].parameters():
            weight.data += 0.05 * torch.randn_like(weight)
    return made
