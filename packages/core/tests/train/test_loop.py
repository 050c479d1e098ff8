"""The loop and its parts: accumulation, clipping, averages, rates, log, counters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fewstep import FewstepError
from fewstep.families import wan
from fewstep.train.dmd2 import DMD2
from fewstep.train.ema import EMA
from fewstep.train.log import Log, Tracker
from fewstep.train.loop import Loop, LossError, generator
from fewstep.train.objective import UpdateSchedule
from fewstep.train.optim import AdamW
from fewstep.train.parallel import World
from fewstep.train.recipe import Job, Recipe
from fewstep.train.roles import Role, Roles, full_roles


class Prompts:
    shape = (3, 2, 4, 4)
    uncond = torch.zeros(1, 5, 8)

    def draw(self, size, generator):
        return torch.randn(size, 5, 8, generator=generator), None


@dataclass(frozen=True, kw_only=True)
class Toy(Recipe):
    """DMD2 on a tiny network, from code."""

    rate: float = 1e-3
    critic_updates: int = 2

    def optimisers(self):
        return {name: AdamW(lr=self.rate) for name in ("student", "critic")}

    def build(self, world: World) -> Job:
        roles = full_roles(wan.tiny())
        return Job(objective=DMD2(roles=roles, schedule=UpdateSchedule(self.critic_updates)), data=Prompts())

    def skeleton(self) -> Job:
        raise NotImplementedError


def loop(**fields: Any) -> Loop:
    recipe = Toy(**{"batch": 2, "steps": 4, **fields})
    return Loop(recipe, recipe.build(World()), World())


def state(role: Role) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in role.state().items()}


def moved(before: dict[str, torch.Tensor], role: Role) -> float:
    return max((role.state()[name] - value).abs().max().item() for name, value in before.items())


def test_a_step_updates_every_role_as_often_as_the_objective_says():
    run = loop()
    before = {name: state(role) for name, role in run.roles.items()}
    line = run.step(0)
    assert run.updates == {"student": 1, "critic": 2}
    assert moved(before["student"], run.roles.student) > 0 and moved(before["critic"], run.roles.critic) > 0
    assert moved(before["teacher"], run.roles.teacher) == 0
    assert all(weight.grad is None for network in run.roles.networks() for weight in network.parameters())
    assert {"student/dmd", "student/gradient", "student/exit", "critic/velocity", "critic/gradient"} <= line.keys()


def test_a_phase_leaves_the_other_role_bit_for_bit():
    run = loop()
    critic = state(run.roles.critic)
    run._phase(0, 0, "student")
    assert moved(critic, run.roles.critic) == 0
    student = state(run.roles.student)
    run._phase(0, 1, "critic")
    assert moved(student, run.roles.student) == 0


def test_steps_depend_on_seed_and_number_alone():
    first, second, other = loop(), loop(), loop(seed=1)
    for step in range(2):
        line = first.step(step)
        torch.rand(3)  # somebody else's use of the global generator
        assert second.step(step) == line
        assert other.step(step) != line
    assert moved(state(first.roles.student), second.roles.student) == 0
    assert moved(state(first.roles.student), other.roles.student) > 0


def test_accumulated_gradients_are_the_mean_of_their_micro_batches():
    run = loop(accumulate=3, clip=1e9)
    expected: dict[str, torch.Tensor] = {}
    for micro in range(3):
        batch = run._batch(0, 0, micro)
        sum(run.job.objective.losses("student", batch, 0).values()).backward()
        for name, weight in run.roles.student.named_parameters().items():
            expected[name] = expected.get(name, 0) + weight.grad / 3
        run.roles.zero_grad()
    seen = {}

    def keep(optimiser, args, kwargs):
        seen.update({name: weight.grad.clone() for name, weight in run.roles.student.named_parameters().items()})

    run.optimisers["student"].register_step_pre_hook(keep)
    run._phase(0, 0, "student")
    for name, gradient in expected.items():
        torch.testing.assert_close(seen[name], gradient, rtol=1e-4, atol=1e-8)


def test_micro_batches_share_the_exit_and_nothing_else():
    run = loop()
    one, other = run._batch(3, 1, 0), run._batch(3, 1, 1)
    assert torch.equal(torch.rand(9, generator=one.shared), torch.rand(9, generator=other.shared))
    assert not torch.equal(one.cond, other.cond)
    assert not torch.equal(one.normal(), other.normal())
    assert torch.equal(one.cond, run._batch(3, 1, 0).cond)
    assert not torch.equal(one.cond, run._batch(3, 2, 0).cond)


def test_which_rank_has_a_micro_batch_does_not_matter():
    recipe = Toy(batch=2)
    job = recipe.build(World())
    alone = Loop(recipe, job, World())
    for rank in range(2):
        of_two = Loop(recipe, job, World(rank, 2))
        for micro in range(2):
            expected = alone._batch(1, 0, 2 * micro + rank)
            assert torch.equal(of_two._batch(1, 0, micro).cond, expected.cond)


def test_gradients_are_clipped_and_logged_before_clipping():
    run, free = loop(clip=1e-4), loop()
    seen = []
    run.optimisers["student"].register_step_pre_hook(
        lambda *_: seen.append(torch.stack([w.grad.norm() for w in run.roles.student.parameters()]).norm().item())
    )
    clipped, unclipped = run._phase(0, 0, "student"), free._phase(0, 0, "student")
    assert clipped["gradient"] == unclipped["gradient"] > 1e-4
    assert seen[0] == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize(("fields", "message"), [({"largest": 1e-12}, r"loss of the student is .* in step 1 \(dmd")])
def test_a_bad_loss_changes_no_weight(fields, message):
    run = loop(**fields)
    before = {name: state(role) for name, role in run.roles.items()}
    with pytest.raises(LossError, match=message):
        run.step(0)
    assert all(moved(before[name], role) == 0 for name, role in run.roles.items())


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    run = loop()
    before = state(run.roles.student)
    run.roles.student.network.proj_out.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(LossError, match=r"gradient of the student is nan in step 1 \(dmd"):
        run.step(0)
    assert moved(before, run.roles.student) == 0


class TestEma:
    def test_closed_form(self):
        role = Role(torch.nn.Linear(1, 1, bias=False))
        role.network.weight.data.fill_(0.0)
        average = EMA(role, decay=0.9, start=1)
        for updates, value in enumerate((2.0, 1.0, 1.0)):
            role.network.weight.data.fill_(value)
            average.update(updates)
        assert average.averages["weight"].item() == pytest.approx(0.9 * (0.9 * 2 + 0.1) + 0.1)

    def test_it_is_float32_and_applied_only_inside(self):
        role = Role(torch.nn.Linear(4, 4).to(torch.bfloat16))
        average = EMA(role, decay=0.5)
        before = state(role)
        average.averages["weight"].fill_(3.0)
        with average.applied():
            assert (role.network.weight == 3).all()
        assert moved(before, role) == 0
        assert {value.dtype for value in average.state().values()} == {torch.float32}

    def test_the_loop_updates_it_with_the_student_alone(self):
        run = loop(ema=0.5)
        start = {name: value.clone() for name, value in run.ema.state().items()}
        run._phase(0, 1, "critic")
        assert all(torch.equal(run.ema.state()[name], value) for name, value in start.items())
        run._phase(0, 0, "student")
        for name, weight in run.roles.student.named_parameters().items():
            torch.testing.assert_close(run.ema.state()[name], (start[name] + weight.detach()) / 2)


def test_rates():
    cosine = AdamW(lr=1.0, warmup=2, schedule="cosine")
    assert [cosine.rate(step, 8) for step in (0, 1)] == pytest.approx([0.5, 0.5 * (1 + 0.5**0.5 * 1.3065629648763766)])
    assert cosine.rate(4, 8) == pytest.approx(0.5) and cosine.rate(7, 8) < 0.05
    assert {AdamW(lr=3.0).rate(step, 8) for step in range(8)} == {3.0}


@pytest.mark.parametrize("fields", [{"lr": 0.0}, {"betas": (0.9, 1.0)}, {"warmup": -1}])
def test_bad_optimiser_settings(fields):
    with pytest.raises(ValueError, match="an optimiser needs"):
        AdamW(**fields)


def test_the_log_is_cut_at_the_checkpoint(tmp_path: Path):
    log = Log(tmp_path / "log.jsonl")
    log.cut(3)
    for step in range(1, 6):
        log.write({"step": step, "student/dmd": 0.5})
    with open(log.path, "a") as file:
        file.write('{"step": 2, "stud')
    log.cut(3)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_tracker_that_is_not_installed_is_named():
    with pytest.raises(FewstepError, match="pip install trackio"):
        Tracker("trackio", "dmd2", {})


def test_generators_differ_by_any_part_of_their_key():
    keys = [("noise", 0, 0, 0), ("noise", 0, 0, 1), ("noise", 0, 1, 0), ("data", 0, 0, 0), ("noise", 1, 0, 0)]
    drawn = {torch.rand(2, generator=generator(*key)).tolist()[0] for key in keys}
    assert len(drawn) == len(keys)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 0}, "batch must be at least 1"),
        ({"clip": 0.0}, "clip"),
        ({"ema": 1.0}, "ema"),
        ({"steps": 0}, "steps"),
    ],
)
def test_bad_recipes(fields, message):
    with pytest.raises(ValueError, match=message):
        Toy(**fields)


def test_parts_of_networks_without_gradient_are_no_problem():
    """A network of which the loss does not use everything."""
    run = loop()
    run.roles.student.network.unused = torch.nn.Linear(2, 2)
    again = Loop(run.recipe, run.job, World())
    before = again.roles.student.network.unused.weight.clone()
    again.step(0)
    assert torch.equal(again.roles.student.network.unused.weight, before)
    assert isinstance(again.roles, Roles)
