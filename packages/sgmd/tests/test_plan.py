"""The plan of SGMD: four calls of the network for a hundred, on real sizes."""

from __future__ import annotations

import json

import pytest
from fewstep.errors import UnsupportedModelError
from fewstep.families import wan, wan_cost
from fewstep.plan.machines import machine
from fewstep.plan.models import parts_of
from fewstep.roofline import Workload, time
from fewstep.testing.cli import run_command_line
from fewstep_sgmd import SGMD
from fewstep_sgmd.plan import plan

LARGE = "Wan-AI/Wan2.1-T2V-14B-Diffusers"


def test_a_step_of_wan_14b_by_hand():
    step = plan(SGMD(), parts_of(LARGE), Workload()).before.phases[1]
    tokens, width = 21 * 30 * 52, 5120  # 32,760 tokens of 81 frames of 480x832
    block = 8 * width**2 * tokens + 4 * width**2 * (tokens + 512) + 4 * width * 13824 * tokens
    attention = 4 * tokens * (tokens + 512) * width
    assert sum(one.flops for one in step.operations) == pytest.approx(2 * 40 * (block + attention), rel=0.01)
    assert time(step, machine("h100", "bfloat16", 1)).bound == "compute"


def test_guidance_and_steps_are_what_is_saved():
    made = plan(SGMD(), parts_of(LARGE), Workload())
    card = machine("h100", "bfloat16", 1)
    before, after = ({phase.name: phase for phase in cost.phases} for cost in (made.before, made.after))
    steps = [cost["denoising step"] for cost in (before, after)]
    ratio = steps[0].times * time(steps[0], card).seconds / (steps[1].times * time(steps[1], card).seconds)
    assert (steps[0].times, steps[1].times) == (50, 4) and ratio == pytest.approx(25)
    assert before["VAE decode"] == after["VAE decode"]
    plain = plan(SGMD(), parts_of(LARGE), Workload(guidance=1.0))
    assert time(plain.before.phases[1], card).seconds == pytest.approx(time(steps[0], card).seconds / 2)


@pytest.mark.parametrize(("name", "billions"), [("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 1.42), (LARGE, 14.3)])
def test_weights_are_counted(name, billions):
    config = parts_of(name)["transformer"]
    assert wan_cost.parameters(config) / 1e9 == pytest.approx(billions, rel=0.02)
    network = wan.KNOWN[name].meta_network()
    assert wan_cost.parameters(config) == pytest.approx(sum(p.numel() for p in network.parameters()), rel=0.01)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UnsupportedModelError, match="no video transformer"):
        plan(SGMD(), {"model": object()}, Workload())
    with pytest.raises(ValueError, match="do not fit"):
        plan(SGMD(), parts_of(LARGE), Workload(frames=80))


def test_on_the_command_line(tmp_path):
    words = ["plan", "--model", LARGE, "--device", "rtx5090"]
    told = run_command_line([*words, "--json"], tmp_path)
    assert told.returncode == 0, told.stderr
    gain = {one["name"]: one["gain"] for one in json.loads(told.stdout)["methods"]}
    assert 15 < gain["sgmd"] < 25
    table = run_command_line(words, tmp_path)
    assert "denoising step" in table.stdout and "more than the 32 GB there are" in table.stdout
    odd = run_command_line([*words, "--frames", "80"], tmp_path)
    assert odd.returncode == 2 and "do not fit" in odd.stderr and odd.stderr.count("\n") == 1
