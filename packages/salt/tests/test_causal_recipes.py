"""Recipes of causal students: settings of the official ones, arms, steps on tiny models, resuming, two processes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fewstep import FewstepError, plugins
from fewstep.cli import main
from fewstep.families import wan
from fewstep.train.roles import Role, Roles
from fewstep_salt.causal_recipes import Curriculum, salt_wan_1_3b
from fewstep_salt.steps import L2, L4, L8
from safetensors.torch import load_file

SIZES = {"frames": 13, "height": 16, "width": 16, "chunk": 2, "tokens": 6, "batch": 1, "accumulate": 2, "steps": 2}
RUN = {"alignment-block": 1, "alignment-after": 0, "critic-updates": 2, "threads": 1, "device": "cpu", "show": 1}
SMALL = [word for name, value in {**SIZES, **RUN}.items() for word in (f"--{name}", str(value))]
WEIGHTS = "student/transformer/diffusion_pytorch_model.safetensors"


def causal_roles() -> Roles:
    return Roles(**{name: Role(wan.tiny()) for name in ("student", "critic", "teacher")})


def test_official_recipes_have_the_official_settings():
    recipes = {name: plugins.recipes()[name].load()() for name in plugins.recipes() if name.startswith("salt-wan")}
    assert {name.removeprefix("salt-wan-1.3b"): recipe.alignment_after for name, recipe in recipes.items()} == {
        "": 1000,
        "-causal-forcing": 700,
        "-longlive": 1200,
    }
    for recipe in recipes.values():
        assert (recipe.teacher, recipe.critic_start) == ("Wan-AI/Wan2.1-T2V-14B-Diffusers", recipe.student_start)
        assert recipe.mix().grids == (L8, L4, L2) and recipe.mix().probabilities == (0.4, 0.4, 0.2)
        assert (recipe.semigroup, recipe.segments, recipe.alignment, recipe.alignment_margin) == (0.2, 4, 0.1, 0.1)
        assert (recipe.student.lr, recipe.critic.lr, recipe.student.weight_decay) == (2e-6, 4e-7, 0.01)
        assert recipe.student.betas == recipe.critic.betas == (0.0, 0.999)
        assert (recipe.guidance, recipe.count, recipe.critic_updates, recipe.eta) == (4.0, "critic", 5, 1.0)
        assert (recipe.chunk, recipe.alignment_block, recipe.alignment_pairs) == (3, 20, ((2, 4),))
        assert recipe.batch * recipe.accumulate * 8 == 64 and recipe.clip == 10.0
    longlive = recipes["salt-wan-1.3b-longlive"]
    assert (longlive.window, longlive.sink, longlive.ema) == (12, 3, 0.0)
    assert recipes["salt-wan-1.3b"].ema == 0.99 and recipes["salt-wan-1.3b"].ema_from * 5 == 200
    noise = [recipe.reference_noise for recipe in recipes.values()]
    assert sorted(noise) == ["aligned-b", "aligned-b", "independent"]


def test_arms_differ_in_lists_and_losses_alone():
    arms = {
        "salt-worlds": ((8, 4, 2), {"semigroup", "alignment"}),
        "mixed-worlds": ((8, 4, 2), set()),
        "self-forcing-8-worlds": ((8,), set()),
        "self-forcing-worlds": ((4,), set()),
    }
    settings = {"lists", "probabilities", "semigroup", "alignment"}
    plain = []
    for name, (lists, losses) in arms.items():
        recipe = plugins.recipes()[name].load()()
        assert recipe.lists == lists and set(recipe.extra()) == losses
        plain.append({k: v for k, v in dataclasses.asdict(recipe).items() if k not in settings})
    assert all(one == plain[0] for one in plain)


def test_a_change_of_lists_frames_and_weights_in_a_run():
    recipe = dataclasses.replace(
        salt_wan_1_3b(),
        curriculum=Curriculum(after=50, lists=(4,), segments=2, frames=42, alignment=0.0),
        semigroup_until=80,
    )
    staged = recipe.causal_objective(causal_roles())
    made = [staged.at(step) for step in (49, 50, 80)]
    assert [one.mix.grids for one in made] == [(L8, L4, L2), (L4,), (L4,)]
    assert [one.frames for one in made] == [None, 42, 42]
    assert [set(one.extra) for one in made] == [{"semigroup", "alignment"}, {"semigroup"}, set()]
    assert made[1].extra["semigroup"].sampler.segments == 2
    student = dataclasses.replace(recipe, count="student", critic_updates=5)
    assert sorted(student.causal_objective(causal_roles()).stages) == [0, 10, 16]
    assert student.extra()["alignment"].start == 200


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"lists": (2,), "probabilities": (1.0,), "alignment": 0.0, "semigroup": 0.0},
            "must be among those of training",
        ),
        ({"probabilities": (1.0,)}, "probability for each"),
        ({"window": 2}, "do not fit into a window of 2"),
        ({"lists": (8, 2), "probabilities": (0.5, 0.5)}, "2 steps cannot be aligned with 4"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_loaded(fields, told):
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(salt_wan_1_3b(), **fields)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"curriculum": Curriculum(after=50, frames=22)}, "22 frames of the curriculum"),
        ({"curriculum": Curriculum(after=50, frames=18)}, "at least the 21 latent frames of the clip, in chunks of 3"),
        ({"alignment_block": 40}, "no block 40 for the alignment: it has 40"),
        ({"alignment_block": -1}, "no block -1"),
    ],
    ids=["chunks", "short", "block", "negative"],
)
def test_settings_that_do_not_fit_the_models_are_refused_in_a_plan(fields, told):
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(salt_wan_1_3b(), **fields).skeleton()


def test_a_block_that_no_loss_asks_for_is_not_looked_at():
    recipe = dataclasses.replace(salt_wan_1_3b(), alignment_block=99)
    for fields in ({"alignment": 0.0}, {"alignment_kind": "mse"}):
        dataclasses.replace(recipe, **fields).check_sizes(21, 40)
    later = dataclasses.replace(recipe, alignment=0.0, curriculum=Curriculum(after=5, alignment=0.1))
    with pytest.raises(ValueError, match="no block 99"):
        later.check_sizes(21, 40)
    with pytest.raises(ValueError, match="a clip of one chunk"):
        dataclasses.replace(salt_wan_1_3b(), curriculum=Curriculum(after=5, frames=6)).check_sizes(3, 40)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Folders of a tiny teacher and of another tiny pipeline to start from."""
    folder = tmp_path_factory.mktemp("models")
    wan.tiny_pipeline().save_pretrained(folder / "teacher")
    wan.tiny_pipeline(seed=1).save_pretrained(folder / "start")
    (folder / "prompts.txt").write_text("a cat runs\na dog sleeps\n")
    return folder


@pytest.fixture
def given(models) -> list[str]:
    """Arguments of a quick run."""
    paths = {"teacher": models / "teacher", "student-start": models / "start", "prompts": models / "prompts.txt"}
    return [*SMALL, *(word for name, path in paths.items() for word in (f"--{name}", str(path)))]


def log(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_run_trains_the_student_and_resumes_to_the_same_bits(given, tmp_path, monkeypatch, capsys, models):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))

    def run(out: str, *words: str) -> None:
        assert main(["train", "salt-worlds", "--out", str(tmp_path / out), *given, *words]) == 0, capsys.readouterr()

    run("whole", "--steps", "3")
    run("cut", "--steps", "1")
    run("cut", "--steps", "3", "--resume")
    assert (tmp_path / "whole" / WEIGHTS).read_bytes() == (tmp_path / "cut" / WEIGHTS).read_bytes()
    assert log(tmp_path / "whole") == log(tmp_path / "cut")
    updates = [(line["student/updates"], line["critic/updates"]) for line in log(tmp_path / "whole")]
    assert updates == [(1, 1), (1, 2), (2, 3)]
    start, after = wan.tiny(seed=1).state_dict(), load_file(tmp_path / "whole" / WEIGHTS)
    assert start.keys() == after.keys() and any(not torch.equal(start[key], after[key]) for key in start)
    first = log(tmp_path / "whole")[0]
    assert {"student/dmd", "student/semigroup_active", "student/alignment_active", "critic/steps"} <= first.keys()


def test_a_student_starts_from_a_checkpoint_and_not_from_a_bidirectional_model(
    given, models, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    torch.save({"generator": wan.tiny(seed=5).state_dict()}, tmp_path / "ode_init.pt")
    words = ["train", "salt-worlds", "--out", str(tmp_path / "run"), *given, "--steps", "1", "--student.lr", "1e-12"]
    assert main([*words, "--student-weights", str(tmp_path / "ode_init.pt")]) == 0, capsys.readouterr()
    after, start = load_file(tmp_path / "run" / WEIGHTS), wan.tiny(seed=5).state_dict()
    assert all(torch.allclose(after[name], start[name], atol=1e-6) for name in start)
    assert (tmp_path / "run" / "student" / "fewstep.json").is_file()
    recipe = dataclasses.replace(salt_wan_1_3b(), teacher=str(models / "teacher"))
    with pytest.raises(FewstepError, match="--student-weights"):
        recipe._start(wan, wan.tiny())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--alignment-block", "2"], "no block 2 for the alignment: it has 2"),
        (["--curriculum.after", "1", "--curriculum.frames", "5"], "5 frames of the curriculum"),
    ],
    ids=["block", "frames"],
)
def test_settings_that_do_not_fit_the_models_are_refused_before_a_run(
    given, tmp_path, monkeypatch, capsys, words, told
):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    assert main(["train", "salt-worlds", "--out", str(tmp_path / "run"), *given, *words]) != 0
    assert told in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--parallel", "shard"], ["--parallel", "shard", "--lora-rank", "2"]], ids=len)
def test_two_processes_equal_one(given, tmp_path, words):
    env = {**os.environ, "FEWSTEP_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    for name, processes, micro in (("one", 1, 2), ("two", 2, 1)):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += ["-m", "fewstep", "train", "salt-worlds", "--out", str(tmp_path / name), *given, *words]
        done = subprocess.run([*command, "--accumulate", str(micro)], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for one, two in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=2e-3, abs=1e-5)


@pytest.mark.slow
def test_the_plan_of_the_real_recipe_downloads_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "salt-wan-1.3b", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "1,418,996,800" in said and "14,288,491,584" in said and "latents of 16x21x60x104" in said
    assert list(tmp_path.iterdir()) == []
