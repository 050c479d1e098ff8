"""``fewstep plan``: models and machines by name, the table, JSON, what does not apply, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fewstep.errors import BadFileError, UnknownNameError, UnsupportedModelError
from fewstep.families import known
from fewstep.plan import this
from fewstep.plan.machines import CARDS, NAMES, machine
from fewstep.plan.models import parts_of
from fewstep.plan.predict import Planned, replaced, stack
from fewstep.plan.stored import from_json, to_json
from fewstep.roofline import Ceiling, Cost, Machine, Operation, Phase, Plan, Workload, total
from fewstep.testing.cli import run_command_line

CPU = torch.device("cpu")
UNIT = Machine(name="unit", ceilings={"matmul": Ceiling(flops=1.0, bandwidth=1.0)}, launch=0.0, memory=100.0)


def fewstep(*words, cwd, env=None):
    return run_command_line(words, cwd, env=env)


def cost(memory=None, **seconds: float) -> Cost:
    phases = tuple(Phase(name=name, operations=(Operation(flops=value),)) for name, value in seconds.items())
    return Cost(phases=phases, memory=memory or {})


def test_ten_real_models_are_known_and_read():
    names = known.names()
    assert len(names) == 10
    for name in names:
        parts = parts_of(name)
        assert set(parts) <= {"model", "transformer", "vae", "text_encoder"} and parts


def test_a_folder_is_read_and_what_is_damaged_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(known.parts("Qwen/Qwen2.5-7B-Instruct")["model"]))
    assert parts_of(str(tmp_path))["model"].num_hidden_layers == 28
    for wrong, said in (({"model_type": "abacus"}, "abacus cannot be planned"), ({}, "without model_type cannot")):
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(UnsupportedModelError, match=said):
            parts_of(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2", "num_hidden_layers": "many"}')
    with pytest.raises(BadFileError, match="lacks a size, or has a wrong one"):
        parts_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadFileError, match="is damaged"):
        parts_of(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadFileError, match="neither config.json nor model_index.json"):
        parts_of(str(tmp_path))
    pipeline = known.parts("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    (tmp_path / "model_index.json").write_text("{}")
    for part, config in pipeline.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    assert set(parts_of(str(tmp_path))) == set(pipeline)


def test_a_stack_takes_each_phase_from_who_changes_it():
    before = cost({"a": 4.0, "b": 4.0}, text=1, steps=10, decode=5)
    same, smaller = dict(before.memory), {"a": 4.0, "b": 1.0}

    def changed(name: str, seam: str, after: Cost) -> Planned:
        return Planned(name, frozenset({seam}), Plan(before=before, after=after))

    steps = changed("steps", "weights", cost(same, text=1, steps=2, decode=5))
    decoder = changed("vae", "vae", cost(smaller, text=1, steps=10, decode=1))
    rival = changed("rival", "vae", cost(same, text=1, steps=10, decode=4))
    together = stack([decoder, rival, steps], UNIT)
    assert together is not None and together.name == "steps + vae"
    assert total(together.plan.after.phases, UNIT) == 1 + 2 + 1 and together.plan.after.memory == {"a": 4.0, "b": 1.0}
    assert [phase.name for phase in together.plan.after.phases] == ["text", "steps", "decode"]
    assert stack([steps], UNIT) is None and stack([rival, decoder], UNIT) is None
    renamed = replaced(before, Plan(before=before, after=cost({}, text=1, cached=3, decode=5)))
    assert [phase.name for phase in renamed.phases] == ["text", "decode", "cached"] and renamed.memory == {}


def test_machines_by_name():
    assert (
        machine("h100", "bfloat16", 1).ceilings["matmul"].flops
        > 10 * machine("h100", "float32", 1).ceilings["matmul"].flops
    )
    assert all(machine(name, "float16", 1).memory > 3e10 for name in CARDS)
    assert machine("cpu", "float32", 2).launch > 0 and not machine("cpu", "float32", 2).ahead
    with pytest.raises(ValueError, match="no row was measured in float16 with 2 threads"):
        machine("cpu", "float16", 2)
    with pytest.raises(UnknownNameError, match="no device is called 'tpu'") as error:
        machine("tpu", "float32", 2)
    assert all(name in str(error.value) for name in NAMES)


def test_this_machine_is_measured_once(tmp_path, monkeypatch):
    found = this.measure(CPU, "float32", 1, seconds=0.0, scale=32)
    assert set(found.ceilings) == {"matmul", "attention", "elementwise", "conv2d", "conv3d"}
    assert all(c.flops > 0 and c.bandwidth > 0 for c in found.ceilings.values())
    assert 0 < found.launch < 1e-2 and found.memory > 1e8 and not found.ahead
    assert from_json("this", json.loads(json.dumps(to_json(found)))) == found
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    file = this.cache_file(CPU, "float32", 1)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(to_json(found)))
    assert this.machine("float32", 1, CPU) == found  # read, not measured again


def test_without_a_model_or_with_an_unknown_one_a_sentence_lists_what_there_is(tmp_path):
    nothing = fewstep("plan", "--device", "h100", cwd=tmp_path)
    assert nothing.returncode == 2 and "needs --model" in nothing.stderr and nothing.stderr.count("\n") == 1
    unknown = fewstep("plan", "--model", "someone/else", "--device", "h100", cwd=tmp_path)
    assert unknown.returncode == 2 and unknown.stderr.count("\n") == 1, unknown.stderr
    assert "no configuration of 'someone/else'" in unknown.stderr and all(
        name in unknown.stderr for name in known.names()
    )
    device = fewstep("plan", "--model", known.names()[0], "--device", "abacus", cwd=tmp_path)
    assert device.returncode == 2 and "h100, h200, a100, rtx5090, cpu, this" in device.stderr
    also = fewstep("plan", "--model", known.names()[0], "--device", "h100", "--also", "nosuch keep=1", cwd=tmp_path)
    assert also.returncode == 2 and "no method is called 'nosuch'" in also.stderr
    bad = fewstep("plan", "--model", known.names()[0], "--device", "h100", "--length", "0", cwd=tmp_path)
    assert bad.returncode == 2 and "length must be at least 1" in bad.stderr


def test_help_teaches(tmp_path):
    shown = fewstep("plan", "--help", cwd=tmp_path)
    assert shown.returncode == 0 and "fewstep plan --model" in shown.stdout and "--guidance" in shown.stdout


def test_nothing_installed_that_applies_is_said(tmp_path):
    bare = fewstep(
        "plan", "--model", known.names()[0], "--device", "h100", cwd=tmp_path, env={"FEWSTEP_PLUGINS": "core"}
    )
    assert bare.returncode == 2 and "no installed method applies" in bare.stderr


def test_workloads_out_of_range_are_refused():
    with pytest.raises(ValueError, match="frames must be at least 1"):
        Workload(frames=0)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Workload(steps=0)
    assert Path(known.FOLDER).is_dir()
