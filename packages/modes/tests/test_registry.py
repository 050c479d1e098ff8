"""Another package adds a policy, an adapter and modalities, in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PLUGIN = """
from fewstep.cards import hookimpl

@hookimpl(optionalhook=True)
def fewstep_skip_policies():
    return {"first": "stranger.policy:First"}

@hookimpl(optionalhook=True)
def fewstep_moe_adapters():
    return {"Qwen3MoeForCausalLM": "stranger.policy:last_layer"}

@hookimpl(optionalhook=True)
def fewstep_modality():
    return {"Qwen3MoeForCausalLM": "stranger.policy:sound"}
"""
POLICY = """
import torch
from fewstep.families import moe
from fewstep_modes.rule import rank

class First:
    def keep(self, site, routed):
        return (rank(routed.weight) == 0) | (routed.kind == 3)[:, None]

def last_layer(model):
    return moe.sites(model)[-1:]

def sound(model, kwargs):
    kind = torch.ones_like(kwargs["input_ids"], dtype=torch.int8)
    kind[:, :3] = 3
    return kind
"""
USE = """
import torch
from fewstep.families import tiny_moe
from fewstep_modes import MoDES, Registered

model = tiny_moe.tiny("qwen3_moe")
with Registered(policy_name="first").apply(model) as applied, torch.no_grad():
    model(**tiny_moe.tiny_inputs("qwen3_moe", batch=1))
stats = applied.counts
print(stats.layers, stats.share(modality=1), stats.share(modality=3), stats.counts[0, 3].tolist())
everything = MoDES(points=({"target": 0.5, "tau_text": 9.0, "tau_vision": 0.0},))
with everything.apply(model) as applied, torch.no_grad():
    model(**tiny_moe.tiny_inputs("qwen3_moe", batch=1))
print(applied.counts.share(modality=3))
"""


def test_policies_adapters_and_modalities_of_another_package(tmp_path: Path):
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger/__init__.py").write_text("")
    (tmp_path / "stranger/plugin.py").write_text(PLUGIN)
    (tmp_path / "stranger/policy.py").write_text(POLICY)
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fewstep]\nstranger = stranger.plugin\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", USE], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()[-2:]
    assert first == "[2] 0.75 0.0 [0, 12]"
    assert second == "1.0", "a modality without a threshold of its own follows that of text"
