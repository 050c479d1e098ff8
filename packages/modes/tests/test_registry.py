"""Policies, adapters and modalities of another package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fewstep import UnknownNameError, plugins
from fewstep.families import tiny_moe
from fewstep_modes import MoDES, Registered

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


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another distribution, installed while a test runs."""
    for name, text in {"__init__.py": "", "plugin.py": PLUGIN, "policy.py": POLICY}.items():
        (tmp_path / "stranger").mkdir(exist_ok=True)
        (tmp_path / "stranger" / name).write_text(text)
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fewstep]\nstranger = stranger.plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugins.installed.cache_clear()
    yield
    plugins.installed.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "stranger"]:
        del sys.modules[name]


@pytest.mark.usefixtures("stranger")
def test_policies_adapters_and_modalities_of_another_package(logits):
    model, inputs = tiny_moe.tiny("qwen3_moe"), tiny_moe.tiny_inputs("qwen3_moe", batch=1)
    with Registered(policy_name="first").apply(model) as applied:
        logits(model, inputs)
    counts = applied.counts
    assert counts.layers == [2] and counts.share(modality=1) == 0.75
    assert counts.counts[0, 3].tolist() == [0, 12]
    everything = MoDES(points=({"target": 0.5, "tau_text": 9.0, "tau_vision": 0.0},))
    with everything.apply(model) as applied:
        logits(model, inputs)
    assert applied.counts.share(modality=3) == 1, "a modality without a threshold of its own follows that of text"


def test_an_unknown_policy_is_refused(model):
    with pytest.raises(UnknownNameError, match="no skip policy is called 'mine'"):
        Registered(policy_name="mine").apply(model)
