"""The plan of MoDES: operations of the family, and what skipping leaves of them."""

from __future__ import annotations

import pytest
from fewstep.errors import UnsupportedModelError
from fewstep.families.moe_cost import MoeSizes, meta_model
from fewstep.families.tiny_moe import tiny
from fewstep.plan.machines import machine
from fewstep.plan.models import parts_of
from fewstep.roofline import Workload, time
from fewstep.testing.cli import run_command_line
from fewstep_modes import MoDES, registry
from fewstep_modes.plan import plan

QWEN = "Qwen/Qwen3-VL-30B-A3B-Instruct"


def test_prefill_has_the_operations_of_the_family():
    parts, work = parts_of(QWEN), Workload(length=4096)
    made, model = plan(MoDES(target=0.5), parts, work), meta_model(parts["model"])
    sizes = MoeSizes.of(model, registry.sites(model))
    before, after = (sum(one.flops for one in cost.phases[0].operations) for cost in (made.before, made.after))
    head = 2 * 2048 * 151936
    assert before == pytest.approx(sizes.prefill_flops(4096) + head, rel=1e-6)
    assert before - after == pytest.approx(0.5 * 2 * sizes.active * 4096)
    assert 58e9 < made.before.memory["weights"] < 66e9


def test_more_skipped_is_never_slower():
    card, parts, times = machine("a100", "bfloat16", 1), parts_of(QWEN), []
    for target in (0.0, 0.5, 0.75, 0.88):
        made = plan(MoDES(target=target), parts, Workload(length=8192))
        times.append([time(phase, card).seconds for phase in made.after.phases])
        assert [time(phase, card).seconds for phase in made.before.phases] == times[0]
    for phase in zip(*times, strict=True):
        assert list(phase) == sorted(phase, reverse=True)


@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe", "deepseek_v3"])
def test_other_mixtures_are_planned(family):
    model = tiny(family)
    model.config.architectures = [type(model).__name__]
    made = plan(MoDES(target=0.5), {"model": model.config}, Workload(length=64, new_tokens=4))
    assert all(one.flops >= 0 for phase in made.after.phases for one in phase.operations)


def test_on_the_command_line(tmp_path):
    words = ["plan", "--model", QWEN, "--device", "h100", "--also", "modes target=0.88", "modes target=0.5"]
    shown = run_command_line(words, tmp_path)
    assert shown.returncode == 0 and "modes target=0.88" in shown.stdout and "prefill" in shown.stdout, shown.stderr


def test_dense_models_are_refused():
    with pytest.raises(UnsupportedModelError, match="no routed experts"):
        plan(MoDES(), parts_of("Qwen/Qwen2.5-7B-Instruct"), Workload())
    with pytest.raises(UnsupportedModelError, match="no routed experts"):
        plan(MoDES(), {"transformer": {}}, Workload())
