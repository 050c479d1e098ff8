"""The student of the zoo's video model: commands of the README, and accuracy of the student."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("fewstep_zoo", reason="needs fewstep-zoo")

import imageio.v3 as iio
from fewstep import BadFileError, Method, load
from fewstep.bench.rows import DENSE, read
from fewstep.cli import main
from fewstep_sgmd import SGMD
from fewstep_zoo.digits.task import MovingDigits

CALL = {"num_frames": 21, "height": 128, "width": 128, "max_sequence_length": 8, "output_type": "latent"}


@pytest.fixture(scope="module")
def teacher():
    return load("digits-wan")


def test_the_name_of_the_model_stands_for_its_student(teacher):
    method = SGMD.from_pretrained("digits-wan")
    assert method == Method.from_pretrained(method.weights.parents[1]) and method.size == (21, 128, 128)
    start = torch.randn(2, 1, 6, 16, 16, generator=torch.Generator().manual_seed(0))
    before = teacher.model(["three", "four"], latents=start, num_inference_steps=2, **CALL).frames
    with method.apply(teacher.model):
        made = teacher.model(["three", "four"], latents=start, **CALL).frames
    assert made.shape == start.shape and not torch.allclose(made, before)
    assert torch.equal(teacher.model(["three", "four"], latents=start, num_inference_steps=2, **CALL).frames, before)
    with pytest.raises(BadFileError, match="neither a folder"):
        SGMD.from_pretrained("smollm2-135m")  # a model without a student


def test_the_student_does_what_is_asked_in_four_calls(teacher):
    with SGMD.from_pretrained("digits-wan").apply(teacher.model):
        outcome = MovingDigits(clips=64).run(teacher, torch.Generator().manual_seed(9))
    assert outcome.counts["network_calls"] == 4 and outcome.quality["accuracy"] >= 0.9


@pytest.mark.parametrize("name", ["out.mp4", "out.gif"])
def test_a_video_from_a_prompt(name: str, tmp_path: Path, capsys):
    words = ["run", "sgmd", "--model", "digits-wan", "--prompt", "three moving right fast", "--threads", "1"]
    assert main([*words, "--output", str(tmp_path / name)]) == 0
    assert "network calls: 4" in capsys.readouterr().out
    video = iio.imread(tmp_path / name, plugin="pyav").astype(float)
    assert video.shape == (48, 240, 240, 3), "6 frames at 16 a second, looped to 3 seconds"
    once = video[:6].mean((1, 3))
    columns = (once * range(240)).sum(1) / once.sum(1)
    assert columns[-1] - columns[0] > 30  # it moves right, 5 pixels of 15 each


def test_the_benchmark_of_the_readme(tmp_path: Path, capsys):
    words = ["bench", "sgmd", "--model", "digits-wan", "--task", "moving-digits", "--clips", "8", "--threads", "1"]
    also = [
        "--also",
        "weights=None",
        "steps=1000,500",
        "--task.steps",
        "4",
        "--repeats",
        "1",
        "--results",
        str(tmp_path),
        "--allow-dirty",
    ]
    assert main([*words, *also]) == 0, capsys.readouterr().err
    rows = {(row.method, json.dumps(row.config), row.metric): row for row in read(tmp_path / "moving-digits.jsonl")}
    calls = {key[:2]: row.value for key, row in rows.items() if key[2] == "network_calls"}
    arms = {"{}": 4, '{"weights": null}': 4, '{"steps": [1000, 500]}': 2}
    assert calls == {(DENSE, "{}"): 8, **{("sgmd", config): count for config, count in arms.items()}}
    assert rows["sgmd", "{}", "clip_speedup"].baseline.startswith(DENSE)
    assert str(tmp_path.parent) not in json.dumps([row.config for row in rows.values()])
