"""The recipes of teacher and judge, two steps each, through the real loop."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from fewstep import load
from fewstep.testing.objective import ObjectiveCase, ObjectiveSuite
from fewstep.train.dry_run import dry_run
from fewstep.train.objective import Batch
from fewstep.train.optim import AdamW
from fewstep.train.parallel import World
from fewstep.train.recipe import Recipe
from fewstep.train.run import Run
from fewstep_zoo import closed_language
from fewstep_zoo.digits import clips, model
from fewstep_zoo.digits.data import LabelledClips, PromptedClips, Prompts
from fewstep_zoo.digits.judge import DigitsJudge
from fewstep_zoo.digits.recipes import Judge, Teacher
from fewstep_zoo.digits.words import Label
from PIL import Image

SMALL = {"steps": 2, "batch": 4}


class Recorder:
    """A reporter that keeps the metrics of each step."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def step(self, done: int, total: int, metrics: dict[str, float]) -> None:
        self.metrics.append(metrics)

    def say(self, text: str) -> None: ...


def trained(recipe: Recipe, out: Path) -> tuple[Path, list[dict[str, float]]]:
    recorder = Recorder()
    return Run(recipe, out, World(), recorder).train(), recorder.metrics


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    return trained(Teacher(**SMALL, show=3), tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    return trained(Judge(**SMALL), tmp_path_factory.mktemp("judge") / "run")


def test_two_steps_give_a_pipeline_that_loads_and_makes_clips(teacher: tuple[Path, list[dict[str, float]]]):
    folder, metrics = teacher
    pipe = load(str(folder)).model
    made = model.make(pipe, ["three moving right fast", ""], torch.zeros(2, *clips.SHAPE), steps=2)
    assert made.shape == (2, *clips.SHAPE) and torch.isfinite(made).all()
    assert [set(seen) for seen in metrics] == [{"student/velocity", "student/gradient"}] * 2
    assert metrics[0]["student/velocity"] > 1  # noise and background are not predicted yet
    assert Image.open(next((folder.parent / "samples").iterdir())).width > 3 * clips.FRAMES


def test_the_text_encoder_is_not_trained(teacher: tuple[Path, list[dict[str, float]]]):
    fresh, saved = (
        closed_language.text_encoder(model.WORDS, model.TEXT_WIDTH).state_dict(),
        load(str(teacher[0])).model.text_encoder.state_dict(),
    )
    assert fresh.keys() == saved.keys() and all(torch.equal(fresh[name], saved[name]) for name in fresh)


def test_two_steps_give_a_judge_that_loads(judge: tuple[Path, list[dict[str, float]]]):
    folder, metrics = judge
    network, info = DigitsJudge.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not network.training
    assert {"student/digit", "student/direction", "student/speed", "student/frame"} < set(metrics[0])


@pytest.mark.parametrize("recipe", [Teacher(**SMALL, show=1), Judge(**SMALL)], ids=["teacher", "judge"])
def test_a_seed_gives_the_same_weights(recipe: Recipe, tmp_path: Path):
    one, same = (weights(trained(recipe, tmp_path / name)[0]) for name in "ab")
    other = weights(trained(dataclasses.replace(recipe, seed=1), tmp_path / "c")[0])
    assert one == same and one != other


def weights(folder: Path) -> bytes:
    return next(folder.rglob("diffusion_pytorch_model.safetensors")).read_bytes()


def test_the_judge_learns(tmp_path: Path):
    """Twenty steps on few clips already tell slow from fast."""
    rates = AdamW(lr=3e-3, betas=(0.9, 0.999))
    _, metrics = trained(Judge(steps=20, batch=32, student=rates), tmp_path / "run")
    assert metrics[-1]["student/speed"] < 0.7 * metrics[0]["student/speed"]


def test_prompts_of_clips_are_right_or_leave_something_open():
    pipe = model.pipeline(model.transformer(num_layers=1))
    data, prompts = PromptedClips(prompts=Prompts(pipe), open=0.5), Prompts(pipe)
    cond, pixels = data.draw(200, torch.Generator().manual_seed(0))
    labels, same = LabelledClips().draw(200, torch.Generator().manual_seed(0))
    assert torch.equal(pixels, same) and data.uncond.shape == (1, model.TOKENS, model.TEXT_WIDTH)
    left = {"direction": 0, "speed": 0}
    for row, (digit, direction, speed) in zip(cond, labels.tolist(), strict=True):
        whole = Label(digit, direction, speed)
        variants = {
            (d, s): dataclasses.replace(whole, direction=direction if d else None, speed=speed if s else None)
            for d in (0, 1)
            for s in (0, 1)
        }
        (open_parts,) = [key for key, label in variants.items() if torch.equal(prompts([label.prompt()])[0], row)]
        left["direction"] += not open_parts[0]
        left["speed"] += not open_parts[1]
    assert all(60 < count < 140 for count in left.values())


@pytest.mark.parametrize("recipe", [Teacher(), Judge()], ids=["teacher", "judge"])
def test_a_plan_needs_no_training(recipe: Recipe):
    plan = dry_run(recipe)
    (counts,) = plan.roles.values()
    assert counts[0] == counts[1] > 100_000 and plan.latent == clips.SHAPE


class TestClassification(ObjectiveSuite):
    @pytest.fixture
    def case(self) -> ObjectiveCase:
        job = Judge().build(World())

        def batch(seed: int) -> Batch:
            generator, shared = (torch.Generator().manual_seed(seed) for _ in range(2))
            cond, x0 = job.data.draw(4, generator)
            return Batch(cond=cond, uncond=None, x0=x0, shape=clips.SHAPE, generator=generator, shared=shared)

        return ObjectiveCase(objective=job.objective, batch=batch)


def test_the_log_and_the_settings_are_kept(teacher: tuple[Path, list[dict[str, float]]]):
    run = teacher[0].parent
    assert json.loads((run / "run.json").read_text())["fields"]["shift"] == model.SHIFT
    assert len((run / "log.jsonl").read_text().splitlines()) == 2
