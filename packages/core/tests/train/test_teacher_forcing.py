"""Teacher forcing: levels by chunk, frames that a prompt does not describe, dropped prompts, a real causal network."""

from __future__ import annotations

import pytest
import torch
from fewstep.applied import Applied
from fewstep.families import wan, wan_causal
from fewstep.train.objective import Batch
from fewstep.train.roles import Role, Roles
from fewstep.train.teacher_forcing import TeacherForcing

SHAPE, TOKENS, CHUNK = (3, 6, 4, 4), 5, 2


def batch(size: int = 2, weight: torch.Tensor | None = None, **how) -> Batch:
    cond, uncond = torch.ones(size, TOKENS, wan.TEXT_WIDTH), torch.zeros(1, TOKENS, wan.TEXT_WIDTH)
    made = {"x0": torch.randn(size, *SHAPE, generator=torch.Generator().manual_seed(1)), **how}
    return Batch(
        cond=cond if weight is None else (cond, weight),
        uncond=uncond if weight is None else (uncond, torch.ones(1, SHAPE[1])),
        shape=SHAPE,
        generator=torch.Generator().manual_seed(2),
        shared=torch.Generator().manual_seed(3),
        **made,
    )


class Watched:
    """A predictor that knows the answer, but for an error in some frames, and keeps what it was asked."""

    def __init__(self, error: torch.Tensor | float = 0.0) -> None:
        self.error = error

    def __call__(self, network, clean, noisy, sigma, cond, chunk):
        self.sigma, self.cond = sigma, cond
        return (noisy - clean) / sigma[:, None, :, None, None] + self.error


def objective(predict, **how) -> TeacherForcing:
    return TeacherForcing(roles=Roles(student=Role(torch.nn.Linear(1, 1))), predict=predict, chunk=CHUNK, **how)


def test_the_true_velocity_has_no_loss_and_frames_of_a_chunk_share_a_level():
    watched = Watched()
    loss = objective(watched).losses("student", batch(), 0)["velocity"]
    assert loss < 1e-8
    levels = watched.sigma.unflatten(1, (-1, CHUNK))
    assert torch.equal(levels[..., 0], levels[..., 1]) and len(levels[..., 0].unique()) == 6


def test_frames_that_the_prompt_does_not_describe_count_for_nothing():
    wrong = torch.zeros(1, 1, SHAPE[1], 1, 1)
    wrong[:, :, :CHUNK] = 2.0
    weight = torch.ones(2, SHAPE[1])
    weight[:, :CHUNK] = 0
    assert objective(Watched(wrong)).losses("student", batch(weight=weight), 0)["velocity"] < 1e-8
    everything = objective(Watched(wrong)).losses("student", batch(weight=torch.ones(2, SHAPE[1])), 0)["velocity"]
    assert everything == pytest.approx(4 * CHUNK / SHAPE[1], rel=1e-5)


@pytest.mark.parametrize(("drop", "mean"), [(0.0, 1.0), (1.0, 0.0)])
def test_dropped_prompts_are_the_empty_one(drop: float, mean: float):
    watched = Watched()
    objective(watched, drop=drop).losses("student", batch(), 0)
    assert watched.cond.mean() == mean


def test_a_causal_network_learns_one_batch():
    network = wan.tiny().train()
    wan_causal.make_causal(network, Applied())
    made = TeacherForcing(roles=Roles(student=Role(network)), predict=wan_causal.teacher_forced, chunk=CHUNK, drop=0.0)
    optimiser, seen = torch.optim.AdamW(network.parameters(), lr=1e-2), []
    for _ in range(12):
        loss = made.losses("student", batch(), 0)["velocity"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append(loss.item())
    assert seen[-1] < 0.6 * seen[0]


def test_data_without_clips_is_refused():
    with pytest.raises(ValueError, match="prompts only"):
        objective(Watched()).losses("student", batch(x0=None), 0)
