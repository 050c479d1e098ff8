"""Real recipes compared on a tiny Wan: the training, the rows, and runs that end badly."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="needs fewstep-core[bench]")

from fewstep import FewstepError
from fewstep.bench.rows import DENSE, read
from fewstep.bench.samples import INDEX
from fewstep.bench.settings import Event, Settings
from fewstep.bench.task import Outcome, Sample, TrainingTask
from fewstep.bench.training import RecipeArm, bench_training
from fewstep.bench.training_run import TrainingRun
from fewstep.cli import main
from fewstep.families import wan
from fewstep.train.distillation import DMD2Recipe
from fewstep.train.optim import AdamW
from fewstep.train.parallel import World
from fewstep_sgmd.recipes import dmd2_digits, sgmd_digits

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Still:
    """Latents of one prompt; their spread stands for quality, the network's calls are counted."""

    metric: str = "frechet"

    def run(self, loaded, generator) -> Outcome:
        calls = []
        hook = loaded.model.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
        noise = torch.randn(1, 3, 2, 4, 4, generator=generator)
        sizes = {"num_frames": 5, "height": 32, "width": 32, "max_sequence_length": 6}
        made = loaded.model("a cat", latents=noise, num_inference_steps=3, output_type="latent", **sizes).frames
        hook.remove()
        quality, counts = {self.metric: made.std().item()}, {"network_calls": float(len(calls))}
        return Outcome(seconds={"clip": 0.1}, quality=quality, counts=counts, samples=(Sample(title="a", text="b"),))


@dataclass(frozen=True, kw_only=True)
class StillTraining(TrainingTask):
    metric = "frechet"
    seen: str = "frechet"

    def scorer(self) -> Still:
        return Still(self.seen)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict:
    """Fields that make a digits recipe tiny."""
    folder = tmp_path_factory.mktemp("training")
    pipe = wan.tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder / "wan")
    (folder / "prompts.txt").write_text("a cat runs\na dog sleeps\n")
    sizes = {"frames": 5, "height": 32, "width": 32, "tokens": 6, "batch": 2}
    return {"teacher": str(folder / "wan"), "prompts": folder / "prompts.txt", **sizes}


@pytest.fixture
def arms(small, tmp_path, monkeypatch) -> dict[str, RecipeArm]:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    recipes = {"dmd2-digits": replace(dmd2_digits(), **small), "sgmd-digits": replace(sgmd_digits(), **small)}
    return {name: RecipeArm(name, {}, recipe) for name, recipe in recipes.items()}


def benched(
    arms, folder: Path, *, task: TrainingTask | None = None, repeats: int = 2, watch=lambda event: None
) -> dict:
    """Rows by method and metric."""
    settings = Settings(repeats=repeats, threads=1, results=folder, command="fewstep bench", allow_dirty=True)
    bench_training(arms, task or StillTraining(seconds=0.2, every=0.1), "still", settings, CPU, watch)
    return {(row.method, row.metric): row for row in read(folder / "still.jsonl")}


def test_each_arm_is_trained_for_the_seconds_and_used_as_its_students_are(arms, tmp_path):
    said: list[Event] = []
    rows = benched(arms, tmp_path, watch=said.append)
    assert rows[DENSE, "network_calls"].value == 6 and (DENSE, "iteration") not in rows
    for name in arms:
        assert rows[name, "network_calls"].value == 4  # four steps without guidance
        spent = rows[name, "iteration"].value * rows[name, "iterations"].value
        assert 0.2 <= spent < 0.2 + 4 * rows[name, "iteration"].value
        assert rows[name, "clip_speedup"].baseline.startswith(DENSE)
    assert rows["sgmd-digits", "iteration_speedup"].baseline == "dmd2-digits"
    assert ("dmd2-digits", "iteration_speedup") not in rows
    for name in ("time_to_quality", "time_to_final"):
        assert (
            rows["dmd2-digits", name].value
            <= rows["dmd2-digits", "iteration"].value * rows["dmd2-digits", "iterations"].value + 1e-6
        )
    assert rows["dmd2-digits", "best_frechet"].value <= rows["dmd2-digits", "frechet"].spread[1]
    assert [event.done for event in said][-2:] == [10, 10] and said[0].total == 2 * (1 + 2 * 2)
    (stored,) = set((tmp_path / "samples").glob("*.json")) - {tmp_path / "samples" / INDEX}
    outputs = json.loads(stored.read_text())["arms"]
    assert (stored.parent / outputs[DENSE][0]["file"]).read_bytes().startswith(b"\x89PNG")  # the curves


def test_quality_is_that_of_the_trained_weights(arms, small):
    """The same number of updates in a run and in a bare loop; afterwards the pipeline has its teacher back."""
    recipe = replace(arms["sgmd-digits"].recipe, student=AdamW(lr=0.01))
    one, same = TrainingRun(recipe, World()), TrainingRun(recipe, World())
    one.train(0.05)
    for step in range(one.steps):
        same.loop.step(step)
    teacher = one.job.pipe.transformer
    start = same.score(Still(), "tiny", 0).quality["frechet"]
    assert one.score(Still(), "tiny", 0).quality["frechet"] == start and one.job.pipe.transformer is teacher
    untrained = TrainingRun(recipe, World()).score(Still(), "tiny", 0).quality["frechet"]
    assert untrained != start


def test_a_lora_student_is_scored_as_itself(arms):
    recipe = replace(arms["sgmd-digits"].recipe, lora_rank=2, lora_targets=("to_q",), student=AdamW(lr=0.1))
    run = TrainingRun(recipe, World())
    before = run.score(Still(), "tiny", 0).quality["frechet"]
    run.loop.step(0)
    run.loop.step(1)
    assert run.score(Still(), "tiny", 0).quality["frechet"] != before


def test_time_to_quality_is_the_first_scoring_as_good_as_the_target(arms):
    run = TrainingRun(arms["sgmd-digits"].recipe, World())
    run.curve = [(10.0, 5.0), (20.0, 3.0), (30.0, 4.0), (40.0, 2.0)]
    assert run.reached(3.5) == 20.0 and run.reached(2.0) == 40.0 and run.reached(1.0) is None


def test_marks_cover_the_whole_time():
    assert StillTraining(seconds=1.0, every=0.4).marks == pytest.approx([0.4, 0.8, 1.0])
    assert StillTraining(seconds=0.3, every=0.1).marks == pytest.approx([0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="every"):
        StillTraining(seconds=1.0, every=2.0)


def test_ctrl_c_keeps_the_seeds_that_are_finished(arms, tmp_path):
    def stop(event: Event) -> None:
        if event.done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benched(arms, tmp_path, watch=stop)
    rows = read(tmp_path / "still.jsonl")
    assert {row.params["repeats"] for row in rows} == {1} and len({row.method for row in rows}) == 3


def test_a_missing_or_broken_figure_stops_the_training_and_records_nothing(arms, tmp_path):
    with pytest.raises(FewstepError, match="frechet of dense is nan: nothing of this run is recorded"):
        benched(arms, tmp_path, task=StillTraining(seconds=0.2, every=0.1, seen="other"))
    assert not (tmp_path / "still.jsonl").exists()


def test_a_loss_that_explodes_stops_the_training(arms, tmp_path):
    broken = replace(arms["sgmd-digits"].recipe, largest=1e-9)
    with pytest.raises(FewstepError, match="loss of the student"):
        benched({"sgmd-digits": RecipeArm("sgmd-digits", {}, broken)}, tmp_path)
    assert not (tmp_path / "still.jsonl").exists()


def test_a_recipe_whose_students_no_method_runs_is_refused(small, tmp_path):
    recipe = DMD2Recipe(**small)
    with pytest.raises(FewstepError, match="names no method"):
        benched({"dmd2": RecipeArm("dmd2", {}, recipe)}, tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("fewstep_zoo") is None, reason="needs fewstep-zoo")
def test_the_command_of_the_readme(tmp_path, monkeypatch, capsys):
    """Two recipes on the zoo's teacher, in seconds; wrong words are answered before anything is loaded."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    words = ["bench", "sgmd-digits", "--vs", "dmd2-digits", "sgmd-digits lam=0", "--threads", "1"]
    sizes = [
        "--seconds",
        "1",
        "--every",
        "1",
        "--clips",
        "8",
        "--repeats",
        "1",
        "--results",
        str(tmp_path),
        "--allow-dirty",
    ]
    code = main([*words, *sizes])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "time-to-quality on digits-wan" in said.out and "iteration speed-up" in said.out
    rows = read(tmp_path / "time-to-quality.jsonl")
    assert [row.config for row in rows if row.method == "sgmd-digits" and row.metric == "iteration"] == [{"lam": 0}, {}]
    assert all(math.isfinite(row.value) for row in rows)
    for wrong, answer in (("sgmd-digits lamm=1", "lamm"), ("nowhere", "nowhere"), ("sgmd-digits", "named again")):
        assert main(["bench", "sgmd-digits", "--vs", wrong]) == 2
        assert answer in capsys.readouterr().err
