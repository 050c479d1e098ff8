"""Launch settings of kernels: chosen by `triton.autotune`, kept in a file, found again, and all of them compile."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed")

DOUBLED = """
import sys
import torch, triton, triton.language as tl
from fewstep.kernels.tuning import Launch, launch

@triton.jit
def doubled(out, x, size, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, 2 * tl.load(x + at, at < size), at < size)

times = [float(word) for word in sys.argv[2:]]
x = torch.arange(40.0)
out = torch.full_like(x, torch.nan)
measured, launched = [], []

def timer(call, quantiles):
    call()
    measured.append(times[len(measured)])
    return [measured[-1]] * 3

def grid(sizes):
    launched.append(sizes["BLOCK"])
    return (triton.cdiv(40, sizes["BLOCK"]),)

launches = [Launch(constants={"BLOCK": block}, warps=warps) for block, warps in ((16, 4), (32, 4), (64, 8))]
for _ in range(2):
    launch(doubled, grid, (out, x, 40), ("any",), launches, large=sys.argv[1] == "large", timer=timer)
assert torch.equal(out, 2 * x)
print(len(measured), launched[-1])
"""


def launched(cache: Path, *words: object) -> str:
    """Number of measurements, and block of the last of two launches, in a process with Triton's interpreter."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "FEWSTEP_CACHE": str(cache)}
    script = cache.parent / "doubled.py"
    script.write_text(DOUBLED, encoding="utf-8")  # Triton reads the source of a kernel from its file
    command = [sys.executable, str(script), *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_fastest_settings_are_measured_once_and_found_again(tmp_path):
    cache = tmp_path / "cache"
    assert launched(cache, "small", 3, 1, 2) == "0 16", "a small call is not worth measuring"
    assert launched(cache, "large", 3, 1, 2) == "3 32"
    (file,) = (cache / "tuning").iterdir()
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert stored == {"doubled any": {"constants": {"BLOCK": 32}, "warps": 4, "stages": None}}
    assert launched(cache, "large", 1, 2, 3) == "0 32" and launched(cache, "small") == "0 32"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"doubled any": {"constants": {"BLOCK": 8}, "warps": 4, "stages": null}}']
)
def test_a_damaged_file_and_settings_that_are_gone_are_measured_anew(tmp_path, text):
    cache = tmp_path / "cache"
    launched(cache, "large", 3, 2, 1)
    (file,) = (cache / "tuning").iterdir()
    file.write_text(text, encoding="utf-8")
    assert launched(cache, "large", 3, 1, 2) == "3 32"


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path):
    cache = tmp_path / "cache"
    cache.write_text("a file", encoding="utf-8")
    assert launched(cache, "large", 3, 2, 1) == "3 64"


@pytest.mark.slow
def test_all_settings_compile_for_a_large_card_without_spills():
    """On smaller cards (sm_80) the largest tiles spill some registers, and lose."""
    from fewstep.kernels.ahead import TARGETS, compiled_usage
    from fewstep.kernels.block_sparse_attention import triton as sparse
    from fewstep.kernels.expert_mlp import triton as experts
    from fewstep.kernels.gathered_attention import triton as gathered

    target = "sm_90"
    signatures = {sig.name: sig for module in (sparse, gathered, experts) for sig in module.signatures()}
    rows = signatures["d128-bf16-rows70"]
    own = {
        "d128-fp16-block128": sparse.launches(128, 2, 128, 128),
        "d128-bf16-rows70": gathered.launches({k: v for k, v in rows.constants.items() if k != "WIDE"}, 2),
        "gated-bf16-rows64": experts.launches(experts.blocks(4096, 32, 2), 2),
        "weighted-bf16-rows64": experts.launches(experts.blocks(4096, 32, 2), 2),
    }
    wrong = []
    for name, launches in own.items():
        for one in launches[1:]:
            changed = {"constants": {**signatures[name].constants, **one.constants}}
            sig = dataclasses.replace(signatures[name], **changed, warps=one.warps, stages=one.stages)
            usage = compiled_usage(sig, target)
            if usage["spilled"] or usage["shared"] > TARGETS[target][3] * 1024:
                wrong.append((name, one, usage))
    assert not wrong
