"""Runs that are killed, interrupted, poisoned or out of space: nothing is lost, and nothing differs afterwards."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

LAST = "checkpoints/step-00000004"


def weights(run: Path, at: str = LAST) -> dict[str, bytes]:
    """Every file of tensors of a checkpoint."""
    return {path.name: path.read_bytes() for path in sorted((run / at).glob("*.safetensors"))}


def log(run: Path) -> list[dict]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def same(run: Path, other: Path) -> None:
    assert weights(run) == weights(other) and weights(run)
    assert log(run) == log(other)
    student = "student/transformer/diffusion_pytorch_model.safetensors"
    assert (run / student).read_bytes() == (other / student).read_bytes()


def complete(run: Path) -> list[str]:
    """Names of what is in the folder of checkpoints."""
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def copied(whole_run: Path, out: Path) -> Path:
    shutil.copytree(whole_run, out, ignore=shutil.ignore_patterns("step-00000004", "student"))
    return out


KILLS = {
    "before anything is saved": ("open", "log.jsonl", 2),
    "while the first checkpoint is written": ("open", "step-00000002.part", 1),
    "when it is written but not there yet": ("os.rename", "step-00000002.part", 1),
    "between two checkpoints": ("open", "log.jsonl", 4),
    "while the second is written": ("open", "step-00000004.part", 1),
    "when the second is written but not there yet": ("os.rename", "step-00000004.part", 1),
    "while the student is saved": ("os.mkdir", ".student.part", 1),
    "when the student is saved but not there yet": ("os.rename", ".student.part", 1),
}


@pytest.mark.parametrize("kill", KILLS.values(), ids=KILLS)
def test_a_killed_run_ends_with_the_same_bits(forks, whole_run, tmp_path, kill):
    killed = forks("--out", tmp_path / "run", kill=kill)
    assert killed.code == -signal.SIGKILL, killed.said
    resumed = forks("--out", tmp_path / "run", "--resume")
    assert resumed.code == 0, resumed.said
    same(tmp_path / "run", whole_run)
    assert complete(tmp_path / "run") == ["step-00000002", "step-00000004"]


def test_a_run_killed_while_an_old_checkpoint_is_removed(forks, whole_run, tmp_path):
    flags = "--out", tmp_path / "run", "--save-every", "1"
    assert forks(*flags, kill=("shutil.rmtree", "step-00000001.old", 2)).code == -signal.SIGKILL
    assert ".step-00000001.old" in complete(tmp_path / "run")
    assert forks(*flags, "--resume").code == 0
    same(tmp_path / "run", whole_run)
    assert complete(tmp_path / "run") == ["step-00000003", "step-00000004"]


def test_a_half_written_line_of_the_log_is_made_again(forks, whole_run, tmp_path):
    run = copied(whole_run, tmp_path / "run")
    lines = (whole_run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    assert forks("--out", run, "--resume").code == 0
    same(run, whole_run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_run_saves_the_step_it_is_in(forks, whole_run, tmp_path, number):
    stopped = forks("--out", tmp_path / "run", kill=("open", "log.jsonl", 3, number))
    assert stopped.code == 130 and stopped.said.endswith("fewstep: interrupted\n"), stopped.said
    assert complete(tmp_path / "run") == ["step-00000002", "step-00000003"]
    assert len(log(tmp_path / "run")) == 3
    assert forks("--out", tmp_path / "run", "--resume").code == 0
    assert weights(tmp_path / "run") == weights(whole_run) and log(tmp_path / "run") == log(whole_run)


def test_a_run_is_not_overwritten_by_accident(forks, whole_run):
    before = weights(whole_run)
    refused = forks("--out", whole_run)
    assert refused.code == 2 and "step-00000004" in refused.said and "--resume" in refused.said
    assert weights(whole_run) == before


def test_other_settings_are_refused_and_named(forks, whole_run):
    words = "--batch", "3", "--student.lr", "0.5", "--save-every", "7", "--sample-every", "2"
    refused = forks("--out", whole_run, "--resume", *words)
    assert refused.code == 2 and refused.said.count("\n") == 1
    assert "other settings: batch 2 -> 3, student.lr 0.001 -> 0.5;" in refused.said


def test_other_prompts_in_the_same_file_are_refused(forks, teacher, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n")
    assert forks("--out", tmp_path / "run", "--steps", "1", "--prompts", file).code == 0
    file.write_text("a dog\n")
    refused = forks("--out", tmp_path / "run", "--steps", "2", "--prompts", file, "--resume")
    assert refused.code == 2 and "prompts.sha256" in refused.said


def test_a_run_goes_on_for_longer_unless_its_rates_depend_on_the_end(forks, whole_run, tmp_path):
    run = copied(whole_run, tmp_path / "run")
    longer = forks("--out", run, "--resume", "--steps", "5")
    assert longer.code == 0 and complete(run)[-1] == "step-00000005", longer.said
    cosine = "--out", tmp_path / "cosine", "--critic.schedule", "cosine"
    assert forks(*cosine).code == 0
    refused = forks(*cosine, "--resume", "--steps", "5")
    assert refused.code == 2 and "steps 4 -> 5" in refused.said


@pytest.mark.parametrize(
    ("words", "reason"),
    [(("--student.lr", "1e30"), "is nan"), (("--largest", "1e-9"), "the loss of the student is")],
    ids=["nan", "exploding"],
)
def test_a_loss_that_explodes_stops_with_step_and_parts(forks, tmp_path, words, reason):
    run = tmp_path / "run"
    stopped = forks("--out", run, "--save-every", "1", *words)
    assert stopped.code == 2, stopped.said
    error = stopped.said.splitlines()[-1]
    assert reason in error and "in step " in error and ("dmd " in error or "velocity " in error)
    kept = sorted((run / "checkpoints").glob("step-*"))
    assert str(kept[-1]) in error if kept else "none was saved" in error
    for path in kept:
        assert all(torch.isfinite(value).all() for value in load_file(path / "critic.safetensors").values())


def test_a_full_disk_keeps_the_checkpoint_before(forks, whole_run, tmp_path):
    run = copied(whole_run, tmp_path / "run")
    size = (whole_run / LAST / "student.safetensors").stat().st_size
    before = weights(run, "checkpoints/step-00000002")
    full = forks("--out", run, "--resume", limit=size - 1000)
    assert full.code == 2 and full.said.count("fewstep: ") == 1, full.said
    error = full.said.splitlines()[-1]
    assert "step-00000004 cannot be written" in error and "File too large" in error
    assert error.endswith(f"the last good one is {run / 'checkpoints/step-00000002'}")
    assert complete(run) == ["step-00000002"] and weights(run, "checkpoints/step-00000002") == before
    assert forks("--out", run, "--resume").code == 0
    same(run, whole_run)


def test_a_disk_that_is_full_at_the_end_loses_nothing(forks, whole_run, tmp_path):
    run = copied(whole_run, tmp_path / "run")
    largest = max(path.stat().st_size for path in (whole_run / LAST).iterdir())
    vae = whole_run / "student/vae/diffusion_pytorch_model.safetensors"
    assert vae.stat().st_size > largest + 1000
    full = forks("--out", run, "--resume", limit=largest + 1000)
    assert full.code == 2 and full.said.count("fewstep: ") == 1, full.said
    assert "student cannot be written: " in full.said and "step-00000004 is whole" in full.said
    assert not (run / "student").exists() and not (run / ".student.part").exists()
    assert forks("--out", run, "--resume").code == 0
    same(run, whole_run)


def changed(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


DAMAGE = {
    "missing": (
        "student.safetensors",
        lambda t: [t.pop(k) for k in sorted(t)[:2]],
        "lacks blocks.0.attn1.norm_k.weight",
    ),
    "extra": ("critic.optimiser.safetensors", lambda t: t.update(zzz=torch.zeros(1)), "has the unknown zzz"),
    "shape": (
        "student.safetensors",
        lambda t: t.update({"proj_out.bias": torch.zeros(3)}),
        "proj_out.bias of shape (3,)",
    ),
}


@pytest.mark.parametrize(("file", "change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_checkpoint_with_other_names_or_shapes_is_refused(forks, whole_run, tmp_path, file, change, message):
    run = copied(whole_run, tmp_path / "run")
    changed(run / "checkpoints/step-00000002" / file, change)
    refused = forks("--out", run, "--resume")
    assert refused.code == 2 and refused.said.count("\n") == 1, refused.said
    assert file in refused.said and message in refused.said


@pytest.mark.parametrize("file", ["student.safetensors", "generators-0.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused(forks, whole_run, tmp_path, file):
    run = copied(whole_run, tmp_path / "run")
    path = run / "checkpoints/step-00000002" / file
    path.write_bytes(path.read_bytes()[:50])
    refused = forks("--out", run, "--resume")
    assert refused.code == 2 and "step-00000002 is damaged" in refused.said, refused.said


@pytest.mark.parametrize("state", ["[]", "{}"])
def test_a_state_that_says_nothing_is_refused(forks, whole_run, tmp_path, state):
    run = copied(whole_run, tmp_path / "run")
    (run / "checkpoints/step-00000002/state.json").write_text(state)
    refused = forks("--out", run, "--resume")
    assert refused.code == 2 and "step-00000002 is damaged" in refused.said, refused.said


def test_resuming_a_finished_run_only_saves_the_student_again(forks, whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/student")
    assert forks("--out", tmp_path / "run", "--resume").code == 0
    same(tmp_path / "run", whole_run)
