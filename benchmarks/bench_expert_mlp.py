"""Time expert-mlp with skipped pairs against transformers' own experts, in random order in one run on this machine.

``python benchmarks/bench_expert_mlp.py --tokens 512 2048 1`` prints medians and appends to results/expert-mlp.jsonl.
No speed when a check is red.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from typing import Any

import torch
from fewstep import Applied
from fewstep.bench.rows import Row, append
from fewstep.families import moe, tiny_moe
from fewstep.kernels.check import numerics
from fewstep.kernels.expert_mlp import KERNEL
from side_by_side import parser, prepared

SKIPPED = (0.0, 0.5, 0.75, 0.875)
THEIRS = ("eager", "grouped_mm", "batched_mm")
LARGEST_BATCHED = 16
"""Tokens up to which `batched_mm` is tried: it copies the weights of every pair."""


class Block:
    """The experts of one layer of a Qwen3-MoE with random weights, on inputs that change in every call."""

    def __init__(self, h: int, f: int, count: int, k: int, tokens: int, seed: int) -> None:
        fields = {
            "num_hidden_layers": 1,
            "layer_types": ["full_attention"],
            "hidden_size": h,
            "moe_intermediate_size": f,
            "num_experts": count,
        }
        self.model = tiny_moe.tiny("qwen3_moe", initializer_range=0.02, num_experts_per_tok=k, **fields)
        self.model.requires_grad_(False)
        self.experts = moe.sites(self.model)[0].experts
        self.count, self.k, self.tokens = count, k, tokens
        self.generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(tokens, h, generator=self.generator)
        self.flush = torch.randn(24_000_000)

    def seconds(self, implementation: str, skipped: float, pack: bool) -> float:
        """One call with new random experts; everything that a cache may hold was read over before."""
        index = torch.rand(self.tokens, self.count, generator=self.generator).topk(self.k).indices
        places = torch.rand(self.tokens * self.k, generator=self.generator).argsort()
        gone = places < round(skipped * self.tokens * self.k)
        index = index.masked_fill(gone.view(self.tokens, self.k), self.count)
        weight = torch.full((self.tokens, self.k), 1 / self.k)
        self.model.set_experts_implementation(implementation)
        packed = vars(self.experts).pop("_fewstep_packed", None)
        if pack:
            self.experts._fewstep_packed = packed
        self.flush.sum()
        with torch.no_grad():
            began = time.perf_counter()
            self.experts(self.x, index, weight)
            took = time.perf_counter() - began
        self.experts._fewstep_packed = packed
        return took


def measure(block: Block, repeats: int, seed: int) -> dict[tuple[str, float, bool], list[float]]:
    """Seconds by implementation, skipped share and packing; two rounds of warm-up."""
    theirs = [name for name in THEIRS if name != "batched_mm" or block.tokens <= LARGEST_BATCHED]
    arms = [(name, 0.0, False) for name in theirs]
    arms += [(moe.IMPLEMENTATION, skipped, pack) for skipped in SKIPPED for pack in (False, True)]
    taken: dict[tuple[str, float, bool], list[float]] = {arm: [] for arm in arms}
    chance = random.Random(seed)
    for turn in range(repeats + 2):
        for arm in chance.sample(arms, len(arms)):
            seconds = block.seconds(*arm)
            if turn >= 2:
                taken[arm].append(seconds)
    return taken


def rows(taken: dict[tuple[str, float, bool], list[float]], common: dict[str, Any]) -> list[Row]:
    """Seconds, the ratio to the fastest of transformers, and how much of the ideal ``1 / (1 - g)`` that is."""
    theirs = [arm for arm in taken if arm[0] != moe.IMPLEMENTATION]
    best = min(theirs, key=lambda arm: statistics.median(taken[arm]))
    made = []
    for (name, skipped, pack), seconds in taken.items():
        ours = name == moe.IMPLEMENTATION
        config = {"skipped": skipped, "packed": pack} if ours else {}
        own = {**common, "method": "expert-mlp" if ours else f"transformers-{name}", "config": config}
        spread = min(seconds), max(seconds)
        made.append(Row(**own, metric="block", value=statistics.median(seconds), unit="s", spread=spread))
        if ours:
            ratios = [a / b for a, b in zip(taken[best], seconds, strict=True)]
            ratio, against = statistics.median(ratios), {"baseline": f"transformers-{best[0]}-float32"}
            ends = min(ratios), max(ratios)
            made.append(Row(**own, **against, metric="block_speedup", value=ratio, unit="x", spread=ends))
            made.append(Row(**own, **against, metric="share_of_ideal", value=ratio * (1 - skipped), unit="x"))
    return made


def main() -> int:
    """Run the benchmark; exit code 1 when the kernel is wrong."""
    flags = parser(__doc__)
    flags.add_argument("--tokens", type=int, nargs="+", default=(512, 2048, 1))
    flags.add_argument("--sizes", type=int, nargs=4, default=(512, 512, 32, 8), metavar=("H", "F", "E", "K"))
    flags.add_argument("--repeats", type=int, default=20)
    flags.add_argument("--threads", type=int, default=1)
    options = flags.parse_args()
    if not (result := numerics(KERNEL, "cpu")).ok:
        print(f"the CPU kernel is wrong, nothing timed: {result.detail}", file=sys.stderr)
        return 1
    torch.set_num_threads(options.threads)
    settings = prepared(options)
    h, f, count, k = options.sizes
    for tokens in options.tokens:
        block = Block(h, f, count, k, tokens, seed=0)
        run = settings.provenance("random", torch.device("cpu"), "float32")
        with Applied() as undo:
            moe.install(undo, block.model, pack=True)
            seconds = measure(block, options.repeats, seed=0)
        params = {"tokens": tokens, "h": h, "f": f, "experts": count, "k": k, "repeats": options.repeats}
        made = rows(seconds, {"task": "expert-mlp", "model": "one-layer", "params": params, "run": run})
        append(made, options.results / "expert-mlp.jsonl")
        for row in made:
            print(f"{tokens:5} {row.method:24}{str(row.config):36}{row.metric:16}{row.value:.4g}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
