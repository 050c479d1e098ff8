"""The plan of Focus-dLLM against what the method does, and on real configurations."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from fewstep.errors import UnsupportedModelError
from fewstep.families import lm_cost, masked_lm
from fewstep.families.sizes import TransformerSizes
from fewstep.plan.machines import machine
from fewstep.plan.models import parts_of
from fewstep.roofline import Workload, total
from fewstep_focus_dllm import DecodingOptions, FocusDLLM
from fewstep_focus_dllm.generation import current_generate
from fewstep_focus_dllm.plan import MOVING, SELECTING, UNMASKING, plan, rows
from torch.utils._python_dispatch import TorchDispatchMode

LLADA = "GSAI-ML/LLaDA-8B-Instruct"


@pytest.mark.parametrize("every", [1, 2])
def test_passes_and_rows_are_those_of_a_decoding(every):
    model, prompt = masked_lm.tiny(), 96
    method = FocusDLLM(keep=0.25, keep_floor=0, prompt_block=8, full_every=every)
    options = DecodingOptions(gen_length=64, block_length=32, stop_at_eos=False)
    with method.apply(model):
        stats = model.generate(torch.randint(0, 40, (1, prompt)), decoding=options).stats
    work = Workload(length=prompt, new_tokens=64, block_length=32, dtype="float32")
    made = plan(method, {"model": model.config}, work)
    phases = {phase.name: phase for phase in made.after.phases}
    assert made.before.phases[0].times == 64
    assert phases["full pass"].times + getattr(phases.get("partial pass"), "times", 0) == len(stats.refresh_seconds)
    assert phases["full pass"].times == stats.refreshes
    assert phases["cached step"].times == len(stats.step_seconds)
    assert rows(method, work) == pytest.approx(sum(stats.rows) / len(stats.rows), rel=0.35)


class Launches(TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def each_step(model, method) -> float:
    """Operations of one more step."""
    counts = []
    for steps in (8, 16):
        options = DecodingOptions(gen_length=32, block_length=32, steps=steps, stop_at_eos=False)
        with method.apply(model) if method else nullcontext(), Launches() as counter:
            current_generate(model)(torch.zeros(1, 128, dtype=torch.long), decoding=options)
        counts.append(counter.count)
    return (counts[1] - counts[0]) / 8


def test_launches_of_a_step_are_those_that_torch_makes():
    model = masked_lm.tiny()
    method = FocusDLLM(keep=0.25, keep_floor=0, prompt_block=16)
    vanilla, focus = each_step(model, None), each_step(model, method)
    assert vanilla == pytest.approx(4 * lm_cost.LAUNCHES + UNMASKING, rel=0.15)
    assert focus - vanilla == pytest.approx(3 * (SELECTING + 2 * MOVING), rel=0.35)  # three of four layers are sparse


def test_longer_prompts_gain_more_and_never_more_than_the_steps_saved():
    card, parts = machine("h100", "bfloat16", 1), parts_of(LLADA)
    gains = []
    for length in (4096, 8192, 32768):
        made = plan(FocusDLLM(), parts, Workload(length=length))
        gains.append(total(made.before.phases, card) / total(made.after.phases, card))
    assert gains == sorted(gains) and gains[0] > 3 and gains[-1] < 32  # one step of 32 is full
    rarely = plan(FocusDLLM(full_every=4), parts, Workload(length=32768))
    assert total(rarely.after.phases, card) < total(made.after.phases, card)
    assert made.after.memory["KV cache"] == 2 * 2 * 32 * 4096 * (32768 + 256) and "KV cache" not in made.before.memory


def test_full_passes_have_the_operations_of_the_family():
    parts = parts_of("Dream-org/Dream-v0-Instruct-7B")
    made = plan(FocusDLLM(), parts, Workload(length=1000, new_tokens=24, block_length=8))
    counted = sum(one.flops for one in made.before.phases[0].operations)
    assert counted == pytest.approx(masked_lm.full_pass_flops(TransformerSizes.of(parts["model"]), 1024, 8))


def test_what_is_not_predicted_is_refused():
    with pytest.raises(UnsupportedModelError, match="this is none"):
        plan(FocusDLLM(), parts_of("Qwen/Qwen2.5-7B-Instruct"), Workload())
    with pytest.raises(UnsupportedModelError, match="refresh_every"):
        plan(FocusDLLM(refresh_every=4), parts_of(LLADA), Workload())
