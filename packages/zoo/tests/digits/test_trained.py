"""The weights in this package: they load, have the quality of the README, and damage is one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from fewstep import BadFileError, UnsupportedModelError, load
from fewstep.families import wan
from fewstep_zoo.digits import clips, measures, model
from fewstep_zoo.digits import load as trained
from fewstep_zoo.digits.task import MovingDigits, TimeToQuality, assess
from fewstep_zoo.digits.words import Label
from safetensors.torch import load_file, save_file


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def teacher():
    return load("digits-wan")


def test_the_judge_is_right_about_images_it_never_saw():
    source = generator(11)
    made = clips.make(clips.draw_labels(512, source), "held-out", source)
    metrics = assess(trained.shared_judge(), made.pixels, made.labels())
    assert metrics["accuracy"] > 0.97 and metrics["digit_agreement"] > 0.97 and metrics["noise"] < 0.02
    others = made.labels()[1:] + made.labels()[:1]
    assert trained.shared_judge()(made.pixels).right(others).prod(1).mean() < 0.1


def test_frechet_distance_orders_real_noisy_and_random_clips():
    source = generator(12)
    judge, (real, other) = (
        trained.shared_judge(),
        [clips.make(clips.draw_labels(256, source), "train", source).pixels for _ in range(2)],
    )
    noisy = real + 0.3 * torch.randn(real.shape, generator=source)
    random = torch.randn(real.shape, generator=source)
    distances = [measures.frechet(judge(x).features, judge(other).features) for x in (real, noisy, random)]
    assert 2 * distances[0] < distances[1] < distances[2]


def test_the_teacher_makes_what_is_asked(teacher):
    outcome = MovingDigits(clips=32, show=4).run(teacher, generator(5))
    assert teacher.weights == "trained"
    assert outcome.quality["accuracy"] >= 0.8 and outcome.counts["network_calls"] == 2 * model.STEPS
    assert outcome.evidence.shape == (32, *clips.SHAPE) and outcome.seconds["clip"] > 0
    moving, still = outcome.samples
    assert moving.image.startswith(b"GIF8") and still.image.startswith(b"\x89PNG")


def test_prompts_may_leave_things_open(teacher):
    start = torch.randn(8, *clips.SHAPE, generator=generator(1))
    made = model.make(teacher.model, ["three moving right fast"] * 4 + ["three"] * 4, start)
    right = trained.shared_judge()(made).right([Label(3, 0, 1)] * 4 + [Label(3)] * 4)
    assert right.all(1).sum() >= 6
    assert measures.centroids(made[:4])[:, -1, 1].mean() > measures.centroids(made[:4])[:, 0, 1].mean() + 2


def test_a_seed_gives_the_same_clips(teacher):
    one, same, other = (MovingDigits(clips=2, steps=2).run(teacher, generator(seed)).evidence for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_another_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="needs digits-wan"):
        MovingDigits(clips=2).run(trained.Loaded(model=wan.tiny_pipeline(), name="tiny"), generator())


@pytest.mark.parametrize("fields", [{"clips": 1}, {"batch": 0}, {"steps": 0}, {"show": 0}])
def test_impossible_sizes_are_refused(fields: dict):
    with pytest.raises(ValueError, match="at least"):
        MovingDigits(**fields)


def test_races_score_with_the_same_task():
    assert TimeToQuality(clips=64).scorer() == MovingDigits(clips=64, batch=64)


def test_the_judge_loads_by_name():
    loaded = load("digits-judge", dtype="bfloat16")
    assert next(loaded.model.parameters()).dtype == torch.bfloat16 and not loaded.model.training


@pytest.mark.parametrize("damage", ["missing", "extra", "cut", "gone"])
def test_a_damaged_judge_is_one_sentence(damage: str, tmp_path: Path):
    folder = tmp_path / "judge"
    shutil.copytree(trained.WEIGHTS / "digits-judge", folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    if damage == "missing":
        save_file({name: value for name, value in weights.items() if name != "digit.weight"}, file)
    elif damage == "extra":
        save_file({**weights, "strange.weight": torch.zeros(1)}, file)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        file.unlink()
    with pytest.raises(BadFileError, match=str(folder)) as caught:
        trained.read_judge(folder)
    assert "\n" not in str(caught.value)
    if damage in ("missing", "extra"):
        assert ("digit.weight" if damage == "missing" else "strange.weight") in str(caught.value)
