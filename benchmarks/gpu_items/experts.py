"""Experts of Qwen3-VL-30B-A3B's block with skipped pairs against transformers' own experts."""

from __future__ import annotations

from typing import Any

import torch
from fewstep.families import moe, tiny_moe
from fewstep.kernels.expert_mlp import KERNEL, expert_mlp
from side_by_side import Call
from torch import Tensor

from .bench import Bench, differs

SKIPPED = (0.75, 0.0, 0.5, 0.88)
"""Shares of pairs that are skipped; the one that decides comes first."""


def one_block(bench: Bench) -> tuple[Any, Any]:
    """A Qwen3-MoE of one layer on the device, in bf16, and its experts."""
    h, f, count, k = bench.pick((2048, 768, 128, 8), (32, 16, 8, 2))
    sizes = {"hidden_size": h, "moe_intermediate_size": f, "num_experts": count, "num_experts_per_tok": k}
    layers = {"num_hidden_layers": 1, "layer_types": ["full_attention"], "initializer_range": 0.02}
    with torch.device(bench.device):
        model = tiny_moe.tiny("qwen3_moe", **layers, **sizes)
    model.to(bench.dtype).requires_grad_(False)
    return model, moe.sites(model)[0].experts


def routes(bench: Bench, tokens: int, count: int, k: int, skipped: float) -> tuple[Tensor, Tensor]:
    """Random experts of each token, an exact share of the pairs skipped, and equal weights."""
    index = torch.rand(tokens, count, device=bench.device).topk(k).indices
    gone = torch.rand(tokens * k, device=bench.device).argsort() < round(skipped * tokens * k)
    weight = torch.full((tokens, k), 1 / k, device=bench.device, dtype=bench.dtype)
    return index.masked_fill(gone.view(tokens, k), count), weight


@torch.no_grad()
def experts(bench: Bench) -> None:
    """Prefill of 4096 tokens and decoding of one."""
    bench.gate(KERNEL)
    model, site = one_block(bench)
    for tokens in bench.pick((4096, 1), (32, 1)):
        for skipped in bench.pick(SKIPPED, SKIPPED[:2]):
            if bench.left > 4:
                _at_one_ratio(bench, model, site, tokens, skipped)


def _at_one_ratio(bench: Bench, model: Any, site: Any, tokens: int, skipped: float) -> None:
    gate_up, down = site.gate_up_proj, site.down_proj
    (count, h, f), k = down.shape, model.config.num_experts_per_tok
    x, (full, weight) = bench.randn(tokens, h), routes(bench, tokens, count, k, 0.0)
    index, _ = routes(bench, tokens, count, k, skipped)

    def theirs(name: str) -> Call:
        def call() -> Tensor:
            model.set_experts_implementation(name)
            return site(x, full, weight)

        return call

    names = (*moe.MANY_TOKENS, *(("batched_mm",) if tokens == 1 else ()))
    calls = {f"transformers-{name}": theirs(name) for name in names}
    dense = list(calls)
    calls[KERNEL.name] = lambda: expert_mlp(x, index, weight, gate_up, down)
    if skipped == 0 and bench.possible({"transformers-grouped_mm": calls["transformers-grouped_mm"]}):
        given = expert_mlp(x, full, weight, gate_up, down), calls["transformers-grouped_mm"]()
        bench.check(f"{KERNEL.name} of {tokens} tokens equals transformers' experts", differs(*given))
    floors = {name: _floor(bench, full, count, h, f) for name in dense}
    floors[KERNEL.name] = _floor(bench, index, count, h, f)
    sizes = {"tokens": tokens, "h": h, "f": f, "experts": count, "k": k, "skipped": skipped}
    bench.compare("forward", KERNEL.name, calls, dense, floors, **sizes)


def _floor(bench: Bench, index: Tensor, count: int, h: int, f: int) -> float:
    """Products of the kept pairs; weights of the experts that have one are read once, tokens in and out."""
    kept = index[index < count]
    moved = 2 * (3 * h * f * kept.unique().numel() + 2 * len(index) * h)
    return bench.floor(6 * h * f * kept.numel(), moved)
