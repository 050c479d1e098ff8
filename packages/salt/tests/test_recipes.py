"""The recipes: fields that reach the objective, and two steps of each on a tiny Wan."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from diffusers import WanPipeline
from fewstep.cli import main
from fewstep.families import wan
from fewstep.train.dry_run import dry_run
from fewstep_salt import plugin
from fewstep_salt.recipes import dmd_8_digits, sc_dmd_digits, sc_dmd_wan_1_3b
from fewstep_salt.steps import L4, L8

SIZES = {"frames": 5, "height": 32, "width": 32, "tokens": 6, "batch": 2, "steps": 2, "threads": 1, "device": "cpu"}
SMALL = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]


def test_every_card_has_its_recipe():
    assert all(card.load()().objective for card in plugin.fewstep_recipes())


def test_arms_on_digits_differ_in_the_semigroup_loss_alone(roles):
    one, other = dataclasses.asdict(sc_dmd_digits()), dataclasses.asdict(dmd_8_digits())
    assert {name for name in one if one[name] != other[name]} == {"semigroup"}
    assert set(sc_dmd_digits().objective(roles).extra) == {"semigroup"} and not dmd_8_digits().objective(roles).extra
    assert sc_dmd_digits().grid == L8 and sc_dmd_digits().sampling_grid == L4


def test_a_recipe_hands_its_fields_to_the_loss(roles):
    fields = {"semigroup": 0.5, "semigroup_weight": "one", "semigroup_target": "velocity", "segments": 2, "shift": 3.0}
    loss = dataclasses.replace(sc_dmd_digits(), **fields).objective(roles).extra["semigroup"]
    assert (loss.scale, loss.weight, loss.target) == (0.5, "one", "velocity")
    assert loss.sampler.segments == 2 and loss.sampler.grid == dataclasses.replace(L8, shift=3.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"semigroup": -0.1}, "0 or more"),
        ({"segments": 3}, "do not divide into 3 segments"),
        ({"use_steps": (1000, 600)}, "must be among those of training"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(sc_dmd_digits(), **fields)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A tiny pipeline as a folder, with prompts beside it."""
    folder = tmp_path_factory.mktemp("teacher")
    wan.tiny_pipeline().save_pretrained(folder / "wan")
    (folder / "prompts.txt").write_text("a cat runs\na dog sleeps\n")
    return folder / "wan"


@pytest.mark.parametrize("name", ["sc-dmd-digits", "dmd-8-digits"])
def test_two_steps_of_each_recipe(name, teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    given = ["--teacher", str(teacher), "--prompts", str(teacher.with_name("prompts.txt")), *SMALL]
    assert main(["train", name, "--out", str(tmp_path / "run"), *given]) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [(line["student/updates"], line["critic/updates"]) for line in lines] == [(1, 5), (2, 10)]
    assert all(("student/semigroup" in line) == (name == "sc-dmd-digits") for line in lines)
    if name == "sc-dmd-digits":
        assert all((line["student/exit"] < 7) == bool(line["student/semigroup_active"]) for line in lines)
    student = WanPipeline.from_pretrained(tmp_path / "run/student")
    student.scheduler.set_timesteps(4)
    assert student.scheduler.timesteps.tolist() == pytest.approx(L4.timesteps.tolist(), abs=1e-2)


def test_four_steps_of_training_are_a_flag(capsys):
    assert main(["train", "dmd-8-digits", "--raw-steps", "1000", "600", "--dry-run"]) == 2
    assert "must be among those of training" in capsys.readouterr().err
    assert re.search(r"\(1000, 750, 500, 250\)", str(dataclasses.replace(dmd_8_digits(), raw_steps=L4.raw).grid))


def test_the_recipe_of_wan_fits_its_teacher():
    recipe = sc_dmd_wan_1_3b()
    assert wan.KNOWN[recipe.teacher].latent(recipe.frames, recipe.height, recipe.width) == (16, 21, 60, 104)
    assert recipe.guidance == 4.0 and recipe.schedule.count == "critic"


def test_a_plan_counts_the_loss_as_latents_without_a_forward(teacher):
    small = {name: value for name, value in SIZES.items() if name not in ("threads", "device")}
    recipe = dataclasses.replace(sc_dmd_digits(), teacher=str(teacher), **small)
    more, less = (dry_run(dataclasses.replace(recipe, semigroup=scale)).variants for scale in (0.2, 0.0))
    latent = 4 * 2 * 3 * 2 * 4 * 4
    for one, other in zip(more, less, strict=True):
        assert one.weights == other.weights and one.activations - other.activations <= 4 * latent
