"""The plan of Flash-VAED and of the exact decoder: operations layer by layer, and both in a pipeline."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fewstep.errors import UnsupportedModelError
from fewstep.families import wan_vae_cost
from fewstep.plan.machines import machine
from fewstep.plan.models import parts_of
from fewstep.roofline import Cost, Workload, time
from fewstep_flash_vaed import ExactDecode, FlashVAED
from fewstep_flash_vaed.decoder import decoder_shape, preset
from fewstep_flash_vaed.fit import student_costs
from fewstep_flash_vaed.plan import plan

VAE, PIPELINE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
WORK = Workload(frames=9, height=96, width=96)


def macs(cost: Cost) -> float:
    """Of convolutions: all operations but attention."""
    return sum(one.flops for one in cost.phases[-1].operations if one.kind != "attention") / 2


def test_multiplications_are_those_of_show():
    parts, size = parts_of(VAE), (WORK.frames, WORK.height, WORK.width)
    made = plan(FlashVAED(), parts, WORK)
    shape = decoder_shape(parts["vae"], *preset(parts["vae"]))
    assert macs(made.before) == pytest.approx(wan_vae_cost.decoder_costs(parts["vae"], *size)["total"].macs)
    assert macs(made.after) == pytest.approx(student_costs(parts["vae"], shape, size)["total"].macs)
    assert made.after.memory["VAE"] == 2 * 5_859_995


def test_exact_decoding_has_the_same_operations():
    made = plan(ExactDecode(), parts_of(VAE), WORK)
    assert macs(made.after) == pytest.approx(macs(made.before))
    assert {one.kind for one in made.before.phases[0].operations} >= {"conv3d", "attention"}
    assert "conv3d" not in {one.kind for one in made.after.phases[0].operations}


def test_a_student_is_faster_than_the_exact_decoder_on_a_cpu():
    cpu, parts = machine("cpu", "float32", 2), parts_of(VAE)
    work = replace(WORK, dtype="float32", vae="exact")
    made = plan(FlashVAED(), parts, work)
    before, after = (time(cost.phases[0], cpu).seconds for cost in (made.before, made.after))
    assert before > 3 * after
    assert time(plan(ExactDecode(), parts, work).after.phases[0], cpu).seconds == pytest.approx(before)


def test_in_a_pipeline_only_decoding_changes():
    made = plan(FlashVAED(), parts_of(PIPELINE), Workload(frames=5, height=64, width=64))
    assert made.before.phases[:-1] == made.after.phases[:-1]
    assert made.before.phases[-1] != made.after.phases[-1]
    assert made.after.memory["weights"] == made.before.memory["weights"]


def test_other_vaes_are_refused():
    with pytest.raises(UnsupportedModelError, match="residual resamplers"):
        plan(FlashVAED(), parts_of("Wan-AI/Wan2.2-TI2V-5B-Diffusers"), Workload())
    with pytest.raises(UnsupportedModelError, match="this model has none"):
        plan(FlashVAED(), {"model": object()}, Workload())
