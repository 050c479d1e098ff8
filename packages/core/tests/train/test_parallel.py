"""Two processes take the same steps as one with the same global batch; and the real torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fewstep.families import wan
from safetensors.torch import load_file

EXTRA = {
    "full": (),
    "lora": ("--recompute", "--lora-rank", "2", "--lora-targets", "to_q", "to_v"),
    "average": ("--ema", "0.5"),
}
STUDENT = {"lora": "student/pytorch_lora_weights.safetensors"}
FULL = "student/transformer/diffusion_pytorch_model.safetensors"


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


DRAWS = """
import torch
from fewstep.flow import StepGrid
from fewstep.train.parallel import join
from fewstep.train.rollout import draw_exit
world, grid = join(), StepGrid()
local, shared = (torch.Generator().manual_seed(world.rank) for _ in range(2))
print([int(torch.randint(0, 4, (), generator=local)) for _ in range(20)])
print([draw_exit(grid, shared) for _ in range(20)])
"""


def test_the_exit_index_is_that_of_the_first_rank(forks):
    first, second = (one.said.splitlines() for one in forks.ranks(2, code=DRAWS))
    assert first[0] != second[0]
    assert first[1] == second[1] == first[0]


@pytest.fixture(scope="module")
def alone(forks) -> dict[str, Path]:
    """One process that accumulates two micro-batches, for each kind of training."""
    for kind, words in EXTRA.items():
        ended = forks("--out", f"alone-{kind}", "--accumulate", "2", *words)
        assert ended.code == 0, ended.said
    return {kind: forks.folder / f"alone-{kind}" for kind in EXTRA}


@pytest.mark.parametrize(
    ("kind", "parallel"),
    [("full", "replicate"), ("full", "shard"), ("lora", "shard"), ("average", "shard")],
    ids=lambda value: value,
)
def test_two_processes_equal_one(forks, alone, tmp_path, kind, parallel):
    ended = forks.ranks(2, "--out", tmp_path / "run", "--parallel", parallel, *EXTRA[kind])
    assert [one.code for one in ended] == [0, 0], ended[0].said + ended[1].said
    assert ended[1].said == ""
    lines, expected = log(tmp_path / "run"), log(alone[kind])
    assert len(lines) == len(expected) == 4
    for one, other in zip(lines, expected, strict=True):
        assert one.keys() == other.keys()
        assert one["student/exit"] == other["student/exit"]
        for key in one.keys() - {"seconds"}:
            assert one[key] == pytest.approx(other[key], rel=2e-3, abs=1e-5), key
    file = STUDENT.get(kind, FULL)
    student, exact = load_file(tmp_path / "run" / file), load_file(alone[kind] / file)
    assert student.keys() == exact.keys()
    before = wan.tiny().state_dict()
    for name, value in exact.items():
        torch.testing.assert_close(student[name], value, rtol=0, atol=2e-4)
    assert kind == "lora" or any((value - before[name]).abs().max() > 1e-3 for name, value in exact.items())


@pytest.mark.parametrize("parallel", ["shard", "replicate"])
def test_a_killed_run_of_two_resumes_to_the_same_bits(forks, tmp_path, parallel):
    words = "--parallel", parallel, "--ema", "0.5"
    assert all(one.code == 0 for one in forks.ranks(2, "--out", tmp_path / "whole", *words))
    kill = ("open", "step-00000004.part", 1)  # by the first rank, which the other then misses
    first, other = forks.ranks(2, "--out", tmp_path / "run", *words, kill=kill)
    assert first.code == -9 and other.code != 0
    ended = forks.ranks(2, "--out", tmp_path / "run", *words, "--resume")
    assert [one.code for one in ended] == [0, 0], ended[0].said + ended[1].said
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert (run / FULL).read_bytes() == (whole / FULL).read_bytes()
    drop = {"seconds"}
    assert [{k: v for k, v in line.items() if k not in drop} for line in log(run)] == [
        {k: v for k, v in line.items() if k not in drop} for line in log(whole)
    ]


def test_sharded_checkpoints_are_strict_too(forks, tmp_path):
    words = "--out", tmp_path / "run", "--steps", "2"
    assert all(one.code == 0 for one in forks.ranks(2, *words))
    refused = forks.ranks(2, *words, "--resume", "--steps", "3", "--ema", "0.5")
    assert [one.code for one in refused] == [2, 2] and "ema 0.0 -> 0.5" in refused[0].said
    alone = forks(*words, "--resume", "--steps", "3")
    assert alone.code == 2 and "processes 2 -> 1" in alone.said
    for shard in sorted((tmp_path / "run/checkpoints/step-00000002/shards").iterdir()):
        hidden = shard.rename(tmp_path / shard.name)
        refused = forks.ranks(2, *words, "--resume", "--steps", "3")
        assert [one.code for one in refused] == [2, 2], refused[0].said
        assert "shards has only a part of " in refused[0].said or "shards lacks " in refused[0].said
        hidden.rename(shard)


def test_a_damaged_shard_is_one_sentence(forks, tmp_path):
    words = "--out", tmp_path / "run", "--steps", "2"
    assert all(one.code == 0 for one in forks.ranks(2, *words))
    shard = max((tmp_path / "run/checkpoints/step-00000002/shards").glob("*.safetensors"))
    whole = shard.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for damaged in (b"", whole[:header], b"\xff" * 8 + whole[8:], whole[:8] + b"x" * (header - 8) + whole[header:]):
        shard.write_bytes(damaged)
        refused = forks.ranks(2, *words, "--resume", "--steps", "3")
        assert [one.code for one in refused] == [2, 2], refused[0].said
        assert refused[0].said.count("\n") == 1 and "is damaged" in refused[0].said, refused[0].said


def test_a_disk_that_is_full_for_one_rank_stops_both(forks, tmp_path):
    words = "--out", tmp_path / "run", "--parallel", "replicate"
    assert all(one.code == 0 for one in forks.ranks(2, *words, "--steps", "2"))
    ended = forks.ranks(2, *words, "--resume", limit=20_000)
    assert [one.code for one in ended] == [2, 2], ended[0].said + ended[1].said
    assert "File too large" in ended[0].said and "another rank failed" in ended[1].said
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]


@pytest.mark.slow
def test_torchrun(forks, tmp_path):
    """The command that users type."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "fewstep"]
    words = ["train", "dmd2", *forks.base, "--steps", "1", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "FEWSTEP_CACHE": str(forks.folder / "cache"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, *words], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("[1/1]") == 1
    assert (tmp_path / "run" / FULL).is_file()
