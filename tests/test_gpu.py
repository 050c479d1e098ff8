"""``benchmarks/gpu.py``: every item at a tiny size, and each way in which a card or an item can fail."""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
from fewstep.bench.rows import read

ROOT = Path(__file__).resolve().parents[1]
COMMAND = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """The module of the command, with what it imports; the items that fail here are beside this file."""
    monkeypatch.syspath_prepend(str(COMMAND.parent))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import gpu

    return gpu


def command(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(COMMAND), *map(str, words)]
    return subprocess.run(line, env={**os.environ, **env}, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_item_runs_at_a_tiny_size_on_the_cpu(gpu, tmp_path):
    done = command("--tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a damaged row
        rows = read(tmp_path)
    ended = {row.method: row.params for row in rows if row.task == "gpu-items" and row.metric == "seconds"}
    assert ended == {item.name: {"outcome": "done", "reason": ""} for item in gpu.ITEMS}
    measured = {row.task for row in rows if row.metric.endswith("_speedup")}
    assert measured == {
        "gpu-kernels",
        "gpu-long-prompt",
        "gpu-experts-prompt",
        "gpu-diffusion-decoding",
        "gpu-clip-decoding",
        "gpu-video-steps",
        "gpu-causal-video",
        "gpu-training-step",
    }
    assert {row.run.weights for row in rows} == {"random"} and {row.run.hardware for row in rows} == {"cpu"}
    assert not [row for row in rows if row.metric in ("nll", "kl", "psnr")], "random weights have no quality"
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert all(f"| {item.name} | done |" in summary for item in gpu.ITEMS)
    assert summary.count(" times the floor (") == 3


def test_the_items_are_those_of_installed_packages_and_fit_a_card_of_80_gb(gpu):
    ours = {name for item in gpu.ITEMS for name in item.needs if name.startswith("fewstep_")}
    packages = {f"fewstep_{path.parent.name.replace('-', '_')}" for path in ROOT.glob("packages/*/pyproject.toml")}
    assert ours and ours <= packages
    assert len({item.name for item in gpu.ITEMS}) == len(gpu.ITEMS)
    assert all(item.gigabytes < 80 and gpu.LEAST * item.seconds < 9 * 60 for item in gpu.ITEMS)


def test_items_are_listed_without_torch(gpu):
    code = "import sys, gpu; sys.argv = ['gpu.py', '--list']; gpu.main(); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=COMMAND.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [item.name for item in gpu.ITEMS]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no CUDA device"),
        (("--tiny", "--only", "kernel"), "there is no item 'kernel'; there are: kernels, "),
        (("--tiny", "--minutes", "0"), "--minutes must be positive, found 0"),
        (("--tiny", "--out", COMMAND), "gpu.py"),
    ],
)
def test_what_cannot_be_run_is_one_line(tmp_path, words, said):
    out = () if "--out" in words else ("--out", tmp_path)
    done = command(*words, *out, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.count("\n") == 1 and said in done.stderr


H100 = {
    "name": "NVIDIA H100 80GB HBM3",
    "capability": (9, 0),
    "built_for": ("sm_80", "sm_90", "compute_90"),
    "free": 84.0,
    "total": 85.0,
    "driver": "570.86",
}
OLD = "The NVIDIA driver on your system is too old (found version 11040)"


@pytest.mark.parametrize(
    ("facts", "shared", "said"),
    [
        ({}, False, ""),
        ({"problem": "Torch not compiled with CUDA enabled"}, False, "no CUDA device: Torch not compiled"),
        ({"problem": OLD}, False, "the driver is too old for this torch: The NVIDIA driver"),
        ({"capability": (7, 5)}, False, "has compute capability 7.5: the kernels need 8.0"),
        (
            {"capability": (12, 0), "built_for": ("sm_80", "sm_90")},
            False,
            "no machine code for compute capability 12.0",
        ),
        ({"capability": (8, 9)}, False, ""),
        ({"capability": (12, 0)}, False, ""),
        ({"others": ("1234, python, 900 MiB",)}, False, "another process is on NVIDIA H100 80GB HBM3 (1234, python"),
        ({"free": 50.0}, False, "(35.0 GB are in use)"),
        ({"free": 50.0}, True, ""),
        ({"free": 1.0, "total": 1.5}, False, "has 1.0 GB free of 1.5: the smallest item needs 2 GB"),
    ],
)
def test_cards_on_which_nothing_can_be_measured_are_refused(gpu, facts, shared, said):
    line = gpu.refusal(gpu.Card(**{**H100, **facts}), gpu.ITEMS, shared=shared)
    assert said in line and bool(line) == bool(said) and "\n" not in line


def test_items_that_do_not_fit_are_skipped_with_a_reason(gpu):
    item = gpu.ITEMS[0]
    large, absent = dataclasses.replace(item, gigabytes=100), dataclasses.replace(item, needs=("no_such_module",))
    card = gpu.Card(**H100)
    assert gpu.missing(item, card) == ""
    assert gpu.missing(large, card) == "needs 100 GB, 84.0 are free" and gpu.missing(large, None) == ""
    assert gpu.missing(absent, card) == "no_such_module is not installed"


def run(gpu, tmp_path: Path, minutes: float = 9.0, **seconds: int) -> dict:
    """Run the items of `gpu_failures` of these names with these caps."""
    (tmp_path / "logs").mkdir()
    common = {"proves": "how items end", "gigabytes": 0.0}
    items = tuple(
        gpu.Item(name=name, target=f"gpu_failures:{name}", seconds=cap, **common) for name, cap in seconds.items()
    )
    options = argparse.Namespace(out=tmp_path, minutes=minutes)
    return gpu.run_items(gpu.context(), items, None, options)


def test_a_failing_item_leaves_its_rows_and_the_next_one_runs(gpu, tmp_path):
    ended = run(gpu, tmp_path, dies=60, raises=60, is_wrong=60, fills_memory=60, does_not_fit=60, is_right=60)
    assert {name: (end.outcome, end.reason) for name, end in ended.items()} == {
        "dies": ("crashed", "SIGABRT"),
        "raises": ("crashed", "ZeroDivisionError: division by zero"),
        "is_wrong": ("wrong", "two and two: 5"),
        "fills_memory": ("out of memory", ended["fills_memory"].reason),
        "does_not_fit": ("skipped", "too small a moon"),
        "is_right": ("done", ""),
    }
    rows = read(tmp_path)
    assert [row.method for row in rows if row.task == "gpu-items"] == list(ended)
    checks = {row.method: row.value for row in rows if row.task == "gpu-checks"}
    assert checks == {"dies": 1.0, "is_wrong": 0.0, "is_right": 1.0}
    assert "ZeroDivisionError" in (tmp_path / "logs" / "raises.log").read_text(encoding="utf-8")


def test_an_item_is_stopped_at_its_cap_with_what_it_started(gpu, tmp_path):
    ended = run(gpu, tmp_path, waits=2, is_right=60)
    assert (ended["waits"].outcome, ended["waits"].reason) == ("stopped", "at 2 s")
    assert ended["is_right"].outcome == "done"
    assert [row.params["check"] for row in read(tmp_path) if row.method == "waits" and row.metric == "passed"] == [
        "one"
    ]
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] in "ZX"


def test_the_time_that_runs_out_in_an_item_stops_it_and_skips_the_rest(gpu, tmp_path):
    ended = run(gpu, tmp_path, minutes=2 / 60, waits=6, is_right=60)
    assert ended["waits"].outcome == "stopped" and ended["waits"].seconds < 6
    assert ended["is_right"].outcome == "skipped" and "are left of 0.0333333 minutes" in ended["is_right"].reason
    assert find_spec("gpu_failures") and [row.value for row in read(tmp_path) if row.metric == "passed"] == [1.0]


def test_configurations_have_the_published_numbers_of_parameters(gpu):
    import torch
    import transformers
    from fewstep.families import wan
    from gpu_items import configs

    def billions(model) -> float:
        return sum(weight.numel() for weight in model.parameters()) / 1e9

    with torch.device("meta"):
        made = {
            "Llama-3.1-8B": transformers.LlamaForCausalLM(configs.llama()),
            "LLaDA-8B": transformers.LlamaForCausalLM(configs.llada()),
            "Qwen3-VL-30B-A3B": transformers.Qwen3VLMoeForConditionalGeneration(configs.qwen({}, {})),
            "Wan2.1-T2V-1.3B": wan.KNOWN["Wan-AI/Wan2.1-T2V-1.3B-Diffusers"].meta_network(),
        }
    counts = {name: round(billions(model), 2) for name, model in made.items()}
    assert counts == {"Llama-3.1-8B": 8.03, "LLaDA-8B": 8.02, "Qwen3-VL-30B-A3B": 31.07, "Wan2.1-T2V-1.3B": 1.42}
