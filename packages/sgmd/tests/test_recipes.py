"""The recipes: settings of the official ones, two steps of each on a tiny Wan, and students that load again."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from fewstep import plugins
from fewstep.cli import main
from fewstep.families import wan
from fewstep.testing.objective import ObjectiveCase, ObjectiveSuite
from fewstep.train.objective import UpdateSchedule
from fewstep_sgmd import SGMD
from fewstep_sgmd.objective import Diversity, SGMDObjective, SiD
from fewstep_sgmd.recipes import DIGITS_PROMPTS, sgmd_wan_1_3b
from safetensors.torch import load_file

SIZES = {"frames": 5, "height": 32, "width": 32, "tokens": 6, "batch": 2, "steps": 2, "threads": 1, "device": "cpu"}
SMALL = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
RECIPES = ("sgmd-digits", "dmd2-digits", "tsg-fisher-digits", "sid-digits", "sgmd-wan-1.3b")


class TestSGMD(ObjectiveSuite):
    @pytest.fixture(params=["fresh", "shared", "diversity", "paper", "tsg-fisher"])
    def case(self, request, roles, make_batch):
        fields = {
            "fresh": {},
            "shared": {"fake_sample": "shared"},
            "diversity": {"diversity": Diversity()},
            "paper": {"weighting": "paper"},
            "tsg-fisher": {"lam": 0.0, "schedule": UpdateSchedule(2)},
        }
        objective = SGMDObjective(roles=roles, **fields[request.param])
        return ObjectiveCase(objective=objective, batch=lambda seed: make_batch(seed=seed))


class TestSiD(ObjectiveSuite):
    @pytest.fixture(params=[True, False])
    def case(self, request, roles, make_batch):
        objective = SiD(roles=roles, through_teacher=request.param)
        return ObjectiveCase(objective=objective, batch=lambda seed: make_batch(seed=seed))


def test_recipes_of_wan_fit_their_teachers_and_follow_the_official_code():
    latents = {"1.3b": (16, 21, 60, 104), "14b": (16, 21, 60, 104), "5b": (48, 31, 44, 80)}
    for name, latent in latents.items():
        recipe = plugins.recipes()[f"sgmd-wan-{name}"].load()()
        sizes = wan.KNOWN[recipe.teacher]
        assert sizes.latent(recipe.frames, recipe.height, recipe.width) == latent
        assert recipe.grid.timesteps.tolist() == pytest.approx([1000, 937.5, 833.3333, 625], abs=1e-3)
        assert recipe.negative == "镜头晃动，" + wan.NEGATIVE
        assert (recipe.diversity > 0) == (name == "1.3b") and recipe.exit_index == "micro-batch"
        assert recipe.batch * recipe.accumulate * 8 in (16, 32)


def test_a_recipe_hands_its_fields_to_the_objective(roles):
    recipe = dataclasses.replace(
        sgmd_wan_1_3b(),
        fake_sample="shared",
        weighting="paper",
        lam=0.2,
        ts_schedule=True,
        ts_schedule_max=True,
        guidance=4.0,
        diversity_anchor=3,
        shift=8.0,
    )
    made = recipe.objective(roles)
    assert (made.fake_sample, made.weighting, made.lam, made.guidance) == ("shared", "paper", 0.2, 4.0)
    assert made.ts_schedule and made.ts_schedule_max and made.schedule == UpdateSchedule(1)
    assert made.diversity == Diversity(weight=0.05, anchor=3, steps=30, shift=8.0)
    assert made.grid.shift == made.score_time.shift == 8.0
    assert dataclasses.replace(recipe, diversity=0.0).objective(roles).diversity is None


def test_the_arms_differ_only_where_they_should(roles):
    recipes = {name: plugins.recipes()[name].load()() for name in RECIPES}
    phases = {name: recipe.objective(roles).phases(0) for name, recipe in recipes.items()}
    assert phases["dmd2-digits"] == phases["tsg-fisher-digits"] == ("student", *5 * ("critic",))
    assert phases["sgmd-digits"] == phases["sid-digits"] == phases["sgmd-wan-1.3b"] == ("student", "critic")
    sgmd = dataclasses.asdict(recipes["sgmd-digits"])
    for name in ("dmd2-digits", "tsg-fisher-digits", "sid-digits"):
        other = dataclasses.asdict(recipes[name])
        assert {key for key in sgmd.keys() & other.keys() if sgmd[key] != other[key]} <= {"critic_updates", "lam"}
    assert recipes["tsg-fisher-digits"].lam == 0
    assert not recipes["sid-digits"].objective(roles).through_teacher


def test_three_in_ten_prompts_of_digits_are_fast():
    lines = DIGITS_PROMPTS.read_text(encoding="utf-8").split("\n")[:-1]
    speeds = Counter(line.split()[-1] for line in lines if line.split()[-1] in ("slow", "fast"))
    assert speeds["fast"] / speeds.total() == pytest.approx(0.3)
    digits = Counter(line.split()[0] for line in lines)
    assert len(digits) == 10 and len(set(digits.values())) == 1


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A tiny pipeline as a folder, with prompts beside it."""
    folder = tmp_path_factory.mktemp("teacher")
    wan.tiny_pipeline().save_pretrained(folder / "wan")
    (folder / "prompts.txt").write_text("a cat runs\na dog sleeps\n")
    return folder / "wan"


@pytest.fixture
def train(teacher, tmp_path, monkeypatch, capsys):
    """`fewstep train` of a recipe with the tiny teacher; returns the folder of the run."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))

    def run(name: str, *words: str) -> Path:
        given = ["--teacher", str(teacher), "--prompts", str(teacher.with_name("prompts.txt")), *SMALL]
        code = main(["train", name, "--out", str(tmp_path / "run"), *given, *words])
        assert code == 0, capsys.readouterr().err
        return tmp_path / "run"

    return run


@pytest.mark.parametrize("name", RECIPES)
def test_two_steps_of_each_recipe(name, train):
    folder = train(name)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    critic = 5 if name.startswith(("dmd2", "tsg")) else 1
    assert [(line["student/updates"], line["critic/updates"]) for line in lines] == [(1, critic), (2, 2 * critic)]
    before, after = (
        wan.tiny().state_dict(),
        load_file(folder / "student/transformer/diffusion_pytorch_model.safetensors"),
    )
    assert before.keys() == after.keys() and any(not torch.equal(before[key], after[key].float()) for key in before)


@pytest.mark.slow
def test_two_processes_log_the_same_metrics(teacher, tmp_path):
    """Samples of one rank may leave a range of noise levels empty that those of the other fill."""
    given = ["--teacher", str(teacher), "--prompts", str(teacher.with_name("prompts.txt")), *SMALL, "--steps", "4"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fewstep"]
    env = {**os.environ, "FEWSTEP_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "train", "sgmd-digits", "--out", "run", *given],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and all(math.isfinite(value) for line in lines for value in line.values())
    assert any(line.keys() != lines[0].keys() for line in lines)  # an empty range is left out


def test_a_full_student_loads_with_diffusers_and_with_us(train, pipe, sample):
    folder = train("sgmd-wan-1.3b", "--student.lr", "0.01") / "student"
    theirs = WanPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    method = SGMD.from_pretrained(folder)
    assert method.size == (5, 32, 32) and method.weights == folder / "transformer/diffusion_pytorch_model.safetensors"
    dense = sample(pipe, num_inference_steps=4, guidance_scale=1.0)
    with method.apply(pipe):
        ours = sample(pipe)
    torch.testing.assert_close(sample(theirs, num_inference_steps=4, guidance_scale=1.0), ours, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, dense, atol=1e-2)


def test_a_lora_student_loads_with_diffusers_and_with_us(train, pipe, sample):
    words = ["--lora-rank", "2", "--lora-alpha", "6", "--student.lr", "0.01", "--fake-sample", "shared"]
    folder = train("sgmd-wan-1.3b", *words) / "student"
    with SGMD.from_pretrained(folder).apply(pipe):
        ours = sample(pipe)
    pipe.load_lora_weights(folder)
    with SGMD().apply(pipe):
        torch.testing.assert_close(sample(pipe), ours, rtol=1e-3, atol=1e-4)
    pipe.unload_lora_weights()
    with SGMD().apply(pipe):
        assert not torch.allclose(ours, sample(pipe), atol=1e-3)


@pytest.mark.slow
def test_the_plan_of_the_real_recipe_downloads_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "sgmd-wan-1.3b", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "1,418,996,800" in said and "LoRA" in said and "32 GPUs" in said and "latents of 16x21x60x104" in said
    assert list(tmp_path.iterdir()) == []


def test_other_ratios_are_refused_before_anything_is_loaded(capsys):
    assert main(["train", "sgmd-digits", "--critic-updates", "5"]) == 2
    assert "one to one" in capsys.readouterr().err
