"""Shares of a training step: the networks forward and backward, the optimisers, and the rest.

``python benchmarks/training_step.py sgmd-digits --steps 20`` prints the shares of each phase and appends them to
``results/training-step.jsonl``.
"""

from __future__ import annotations

import time
from collections import defaultdict

import torch
from fewstep import plugins
from fewstep.bench.record import ArmConfig, Measurement, make_rows
from fewstep.bench.rows import DENSE, append
from fewstep.bench.settings import available_cores
from fewstep.train.loop import Loop
from fewstep.train.parallel import World
from side_by_side import parser, prepared


class Clock:
    """Seconds by name; nothing nests."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def around(self, owner: object, method: str, name: str) -> None:
        """Time every call of a method."""
        inner = getattr(owner, method)

        def timed(*args: object, **kwargs: object) -> object:
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - began

        setattr(owner, method, timed)


def measure(recipe: str, steps: int) -> tuple[float, dict[str, float]]:
    """Seconds of a step, and the share of each part of it."""
    chosen = plugins.find(plugins.recipes(), recipe, "recipe").load()()
    torch.manual_seed(chosen.seed)
    loop, clock = Loop(chosen, job := chosen.build(World()), World()), Clock()
    for step in range(3):
        loop.step(step)
    for name, role in job.objective.roles.items():
        clock.around(role.network, "forward", f"forward of the {name}")
    clock.around(torch.Tensor, "backward", "backward")
    for optimiser in loop.optimisers.values():
        clock.around(optimiser, "step", "optimisers")
    clock.around(job.data, "draw", "data")
    began = time.perf_counter()
    for step in range(3, 3 + steps):
        loop.step(step)
    seconds = time.perf_counter() - began
    return seconds / steps, {name: spent / seconds for name, spent in clock.seconds.items()}


def main() -> int:
    """Measure and record."""
    flags = parser(__doc__)
    flags.add_argument("recipe")
    flags.add_argument("--steps", type=int, default=20)
    options = flags.parse_args()
    torch.set_num_threads(available_cores())
    settings = prepared(options)
    run = settings.provenance("trained", torch.device("cpu"), "float32")
    seconds, shares = measure(options.recipe, options.steps)
    networks = sum(share for name, share in shares.items() if "ward" in name)
    print(f"{options.recipe}: {seconds:.3f} s a step, {networks:.1%} of it in the networks")
    for name, share in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"  {name:24}{share:7.1%}")
    counts = {"share_of_networks": networks, **{f"share_of_{name.replace(' ', '_')}": s for name, s in shares.items()}}
    measurements = {options.recipe: [Measurement(seconds={"step": seconds}, quality={}, counts=counts)]}
    head = {"task": "training-step", "model": "digits-wan", "params": {"steps": options.steps}, "run": run}
    arms = {options.recipe: ArmConfig(options.recipe, {})}
    append(make_rows(head, arms, {DENSE: [], **measurements}, DENSE), options.results / "training-step.jsonl")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
