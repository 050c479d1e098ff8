"""The roofline by hand values, and the operations of families against torch's own counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fewstep.families import causal_lm, lm_cost, wan, wan_cost
from fewstep.families.sizes import TransformerSizes
from fewstep.plan.calibrate import Observation, fit
from fewstep.plan.machines import machine
from fewstep.plan.models import parts_of
from fewstep.roofline import Ceiling, Machine, Operation, Phase, Workload, merged, time, total
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

CARD = Machine(
    name="card",
    ceilings={"matmul": Ceiling(flops=100.0, bandwidth=10.0), "attention": Ceiling(flops=50.0, bandwidth=10.0)},
    launch=0.5,
    memory=1e9,
)
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def flops(phase: Phase) -> float:
    return sum(operation.flops for operation in phase.operations)


class Launches(TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_the_longer_of_arithmetic_and_traffic_counts():
    phase = Phase(
        name="both",
        operations=(
            Operation(flops=400, bytes=10),  # 4 s of arithmetic against 1 s of traffic
            Operation(flops=100, bytes=30),  # 1 s against 3 s
            Operation(kind="attention", flops=100, launches=4),  # 2 s at half the rate, 2 s of launches
        ),
    )
    spent = time(phase, CARD)
    assert (spent.compute, spent.bandwidth, spent.launches, spent.seconds) == (6, 3, 2, 9)
    assert spent.bound == "compute"
    assert time(phase, replace(CARD, ahead=False)).seconds == 11  # a CPU does nothing while it launches
    assert (
        time(phase, replace(CARD, launch=5.0)).seconds == 20
        and time(phase, replace(CARD, launch=5.0)).bound == "launches"
    )
    assert time(merged(phase), CARD) == spent and total([replace(phase, times=3)], CARD) == 27


def test_prefill_of_llama_by_hand():
    work = Workload(length=8192)
    prefill, decode = lm_cost.dense(parts_of(LLAMA)["model"], work).phases
    matrices = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)  # 6.98 billion
    by_hand = 2 * matrices * 8192 + 32 * 2 * 4096 * 8192**2 + 2 * 4096 * 128256
    assert flops(prefill) == pytest.approx(by_hand, rel=1e-9)
    h100 = machine("h100", "bfloat16", 1)
    # a new token reads 15 GB of weights and 1 GB of keys and values: 4.8 ms at 3.35 TB/s
    read = 2 * (matrices + 4096 * 128256) + 2 * 2 * 32 * 1024 * (8192 + 128)
    assert time(decode, h100).bandwidth == pytest.approx(read / 3.35e12, rel=0.01)
    assert time(decode, h100).bound != "compute" and time(prefill, h100).bound == "compute"


def products(operations) -> float:
    """FLOPs without attention, which torch does not count on a CPU."""
    return sum(one.flops for one in operations if one.kind != "attention")


def test_operations_are_those_that_torch_counts():
    model = causal_lm.tiny()
    sizes, tokens = TransformerSizes.of(model.config), 64
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(causal_lm.tiny_prompt(tokens), logits_to_keep=1)
    prefill = lm_cost.prefill(sizes, [tokens] * sizes.layers, 4)
    assert counter.get_total_flops() == pytest.approx(products(prefill.operations), rel=1e-3)
    network = wan.tiny()
    work = Workload(frames=5, height=16, width=16, text_tokens=4)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        wan.velocity(network, torch.zeros(1, 3, 2, 8, 8), torch.ones(1), torch.zeros(1, 4, wan.TEXT_WIDTH))
    counted = products(wan_cost.network(dict(network.config), (3, 2, 8, 8), work))
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.05)  # all but the embedding of the timestep


def launches_of(run) -> int:
    with Launches() as counter, torch.inference_mode():
        run()
    return counter.count


def test_launches_of_a_layer_are_those_that_torch_makes():
    ids = causal_lm.tiny_prompt(8)
    two, four = (causal_lm.tiny(num_hidden_layers=layers) for layers in (2, 4))
    each = (launches_of(lambda: four(ids)) - launches_of(lambda: two(ids))) / 2
    assert each == pytest.approx(lm_cost.LAUNCHES, rel=0.15)
    inputs = torch.zeros(1, 3, 2, 4, 4), torch.ones(1), torch.zeros(1, 4, wan.TEXT_WIDTH)
    networks = [wan.tiny(num_layers=layers) for layers in (2, 4)]
    small, large = (launches_of(lambda network=network: wan.velocity(network, *inputs)) for network in networks)
    assert (large - small) / 2 == pytest.approx(wan_cost.LAUNCHES, rel=0.15)
    assert small - 2 * wan_cost.LAUNCHES == pytest.approx(wan_cost.AROUND, abs=25)


@pytest.mark.parametrize("field", ["length", "new_tokens", "batch"])
def test_more_work_takes_longer(field):
    config, card = parts_of(LLAMA)["model"], machine("a100", "bfloat16", 1)
    times = [total(lm_cost.dense(config, Workload(**{field: 2**n})).phases, card) for n in range(6, 10)]
    assert times == sorted(times) and times[0] < times[-1]


def test_a_fit_finds_the_machine_again():
    config = parts_of(LLAMA)["model"]
    true = replace(CARD, ahead=False, launch=2e-5, ceilings={
        "matmul": Ceiling(flops=3e11, bandwidth=1e10), "attention": Ceiling(flops=1e11, bandwidth=4e9),
        "elementwise": Ceiling(flops=3e11, bandwidth=1e10),
    })  # fmt: skip
    seen = [
        Observation((replace(phase, times=1),), time(phase, true).seconds)
        for length in (64, 1024, 16384)
        for phase in lm_cost.dense(config, Workload(length=length)).phases
    ]
    found = fit(seen, "found", "here")
    assert found.name == "found" and not found.ahead
    for one in seen:
        assert total(one.phases, found) == pytest.approx(one.seconds, rel=0.1)
