"""Sparse attention kernels at real shapes against the dense and sparse attention that torch has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from bench_block_sparse import flex_mask, random_lists
from bench_gathered import selection
from fewstep.kernels.block_sparse_attention import KERNEL as SPARSE
from fewstep.kernels.block_sparse_attention import block_sparse_attention
from fewstep.kernels.gathered_attention import KERNEL as GATHERED
from fewstep.kernels.gathered_attention import gathered_attention
from side_by_side import Call
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from .bench import Bench, differs

DENSITIES = (0.12, 0.05, 0.25, 0.5, 1.0)
"""Shares of blocks that are read; the one that decides comes first, in case that time runs out."""
NAIVE_BACKWARD = 70.0
"""GB that the gradients of the specification need at the real shape: it holds all scores."""


def dense_calls(bench: Bench, query: Tensor, key: Tensor, value: Tensor) -> dict[str, Call]:
    """SDPA by backend: cuDNN and Flash on a card, the only one that is fast on a CPU."""
    names = {"sdpa-cudnn": SDPBackend.CUDNN_ATTENTION, "sdpa-flash": SDPBackend.FLASH_ATTENTION}
    chosen = bench.pick(names, {"sdpa-flash": SDPBackend.FLASH_ATTENTION})

    def call(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value, enable_gqa=query.shape[1] != key.shape[1])

    return {name: partial(call, backend) for name, backend in chosen.items()}


def with_gradients(forward: Callable[[], Tensor], inputs: tuple[Tensor, ...], outer: Tensor) -> Call:
    """A call that computes the gradients of `inputs`, forward pass included."""
    return lambda: torch.autograd.grad(forward(), inputs, outer)


def block_sparse(bench: Bench) -> None:
    """Block-sparse attention, forward at all densities and tiles, with gradients at one of each."""
    bench.gate(SPARSE)
    h, d, t, n = bench.pick((12, 128, 4608, 32256), (2, 16, 128, 256))
    shapes = ((1, h, t, d), (1, h, n, d), (1, h, n, d))
    inputs = tuple(bench.randn(*shape) for shape in shapes)
    flex = bench.pick(torch.compile(flex_attention), flex_attention)
    for size in bench.pick((64, 128), (64,)):
        for density in bench.pick(DENSITIES, DENSITIES[:1]):
            if bench.left > 5:
                blocks = random_lists(h, t // size, n // size, density).to(bench.device)
                _at_one_density(bench, inputs, blocks, size, flex)


def _at_one_density(bench: Bench, inputs: tuple[Tensor, ...], blocks: Tensor, size: int, flex: Callable) -> None:
    query, key, value = inputs
    h, t, d, n = *query.shape[1:], key.shape[2]
    mask, kept = flex_mask(query, key, blocks, size), blocks.shape[3] / (n // size)
    if bench.tiny:  # FlexAttention that is not compiled asks this function instead
        listed = torch.zeros(mask.full_kv_indices.shape, dtype=torch.bool).scatter(3, blocks, True)
        mask.mask_mod = lambda batch, head, row, token: listed[batch, head, row // size, token // size]

    def own(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_sparse_attention(q, k, v, blocks, query_block=size, key_block=size)

    dense = dense_calls(bench, *inputs)
    calls = {**dense, "flex-attention": lambda: flex(*inputs, block_mask=mask), SPARSE.name: lambda: own(*inputs)}
    name = f"{SPARSE.name} at {kept:.0%} in blocks of {size} equals FlexAttention"
    if bench.possible({"flex-attention": calls["flex-attention"]}):
        bench.check(name, differs(calls[SPARSE.name](), calls["flex-attention"]()))
    flops, moved = 4 * h * t * n * d, 2 * (2 * query.numel() + 2 * key.numel())
    floors = {name: bench.floor(flops * (1 if name in dense else kept), moved) for name in calls}
    params = {"heads": h, "head_dim": d, "queries": t, "keys": n, "block": size, "density": kept}
    bench.compare("forward", SPARSE.name, calls, list(dense), floors, **params)
    if size != 64 or abs(kept - DENSITIES[0]) > 0.01:
        return
    if bench.free < bench.pick(NAIVE_BACKWARD, 0.0):
        return bench.note("backward", f"the gradients of the specification need {NAIVE_BACKWARD:g} GB here")
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    outer = torch.randn_like(query)
    calls = {name: with_gradients(call, leaves, outer) for name, call in dense_calls(bench, *leaves).items()}
    calls["flex-attention"] = with_gradients(lambda: flex(*leaves, block_mask=mask), leaves, outer)
    calls[SPARSE.name] = with_gradients(lambda: own(*leaves), leaves, outer)
    floors = {name: 3.5 * floors[name] for name in calls}  # backward has five products where forward has two
    bench.compare("backward", SPARSE.name, calls, list(dense), floors, repeats=2, **params)


def gathered(bench: Bench) -> None:
    """Gathered attention: 32 rows of 32 heads on the chosen keys of 32K."""
    bench.gate(GATHERED)
    h, g, d, n, rows = bench.pick((32, 32, 128, 32768, 32), (4, 2, 16, 256, 3))
    query, key, value = bench.randn(1, h, rows, d), bench.randn(1, g, n, d), bench.randn(1, g, n, d)
    dense = dense_calls(bench, query, key, value)
    for share in bench.pick((0.05, 0.1, 0.2, 0.5), (0.5,)):
        chosen = selection(n, share, singles=16).to(bench.device)

        def copied(at: Tensor = chosen[0]) -> Tensor:
            picked = key.index_select(2, at), value.index_select(2, at)
            return F.scaled_dot_product_attention(query, *picked, enable_gqa=h != g)

        own = {GATHERED.name: lambda at=chosen: gathered_attention(query, key, value, at)}
        calls = {**dense, "gathered-sdpa": copied, **own}
        shares = {name: 1.0 if name in dense else chosen.numel() / n for name in calls}
        floors = {name: bench.floor(4 * h * rows * n * d * s, 4 * key.numel() * s) for name, s in shares.items()}
        sizes = {"heads": h, "kv_heads": g, "head_dim": d, "rows": rows, "keys": n, "share": chosen.numel() / n}
        bench.compare("forward", GATHERED.name, calls, list(dense), floors, **sizes)
