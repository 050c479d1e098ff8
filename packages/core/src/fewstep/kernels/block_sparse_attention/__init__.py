"""Attention in which each block of queries looks at its own list of key blocks, per head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.kernels import Case, Kernel
from fewstep.kernels.attention import check_places, check_shapes, run_backend

from . import naive


def block_sparse_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g n d"],
    value: Float[Tensor, "b g n d"],
    blocks: Int[Tensor, "b h q k"],
    *,
    query_block: int,
    key_block: int,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Float[Tensor, "b h t d"] | tuple[Float[Tensor, "b h t d"], Float[Tensor, "b h t"]]:
    """Attention in which each block of queries looks at the key blocks of its own list.

        o_i = softmax_j(scale <q_i, k_j>) v_j      j with  j // key_block  in  blocks[i // query_block]

    (Sparse Transformers, arXiv 1904.10509, with index sets of whole blocks.) Work is proportional to the listed blocks;
    if all are listed this is dense attention. On a CPU it is faster than dense attention up to some three quarters of
    the blocks. Gradients are those of the specification, which holds all scores at once.

    Args:
        query: queries; head ``i`` reads KV head ``i // (h / g)``.
        key: keys; on a CPU a view that is not contiguous is copied.
        value: values, of the shape of `key`.
        blocks: ``q = ceil(t / query_block)`` lists of numbers in ``[0, ceil(n / key_block))``, each at most once in a
            list, in any order; -1 for none, so that lists may differ in length.
        query_block: rows in a block of queries, at least 1; the last may have fewer.
        key_block: tokens in a block of keys, at least 1; the last may have fewer.
        scale: of the scores; None for ``1 / sqrt(d)``.
        return_lse: also return the logarithm of the sum of exponentials, which
            `fewstep.kernels.attention.merge_attention` takes.
        backend: ``naive``, ``cpu`` or ``triton``; None picks by device, see `Kernel.chosen_backend`.

    Returns:
        Output in the dtype of `query`; with `return_lse` also the LSE in fp32. An empty list gives 0 and -inf.

    Raises:
        ValueError: shapes, dtypes, sizes or numbers (these on a CPU only) do not fit, in one sentence.
        ImportError: the backend was asked for by name and is not installed.
    """
    check_shapes(query, key, value)
    if query_block < 1 or key_block < 1:
        raise ValueError(f"blocks must be positive, found query_block={query_block} and key_block={key_block}")
    lists = (*query.shape[:2], -(-query.shape[2] // query_block))
    if blocks.ndim != 4 or blocks.shape[:3] != lists:
        expected = ", ".join(map(str, lists))
        raise ValueError(f"blocks must be [{expected}, k], one list for each query block, found {tuple(blocks.shape)}")
    check_places(blocks, -(-key.shape[2] // key_block), "blocks")
    options = {"query_block": query_block, "key_block": key_block, "scale": scale, "return_lse": return_lse}
    return run_backend(KERNEL, backend, (query, key, value), blocks, options)


def _cases() -> Iterator[Case]:
    """Ragged tails, GQA 1 to 4, odd head sizes, lists full, of one length, of many and empty, views of buffers."""
    sizes = (
        # b, h, g, t, n, d, query_block, key_block, k
        (1, 2, 2, 64, 128, 64, 32, 32, 2),
        (2, 4, 2, 77, 101, 40, 16, 32, 4),
        (1, 4, 1, 33, 45, 96, 64, 16, 3),
        (1, 2, 1, 50, 70, 128, 16, 64, 1),
        (2, 1, 1, 5, 9, 17, 4, 2, 4),
        (1, 1, 1, 3, 40, 32, 8, 8, 0),
    )
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    generator = torch.Generator().manual_seed(0)
    for row, (b, h, g, t, n, d, query_block, key_block, k) in enumerate(sizes):
        for column, return_lse in enumerate((True, False)):
            dtype = dtypes[(row + column) % 3]
            query = torch.randn(b, h, t, d, generator=generator).to(dtype)
            key, value = (torch.randn(b, g, n + 3, d, generator=generator).to(dtype)[:, :, :n] for _ in range(2))
            lists = b, h, -(-t // query_block), -(-n // key_block)
            blocks = torch.rand(lists, generator=generator).argsort(-1)[..., : k or None if column else k]
            if column:  # of many lengths, the first empty
                blocks = blocks.masked_fill(torch.rand(blocks.shape, generator=generator) < 0.4, -1)
                blocks[0, 0, 0] = -1
            options = {"query_block": query_block, "key_block": key_block, "return_lse": return_lse}
            options |= {"scale": 0.3} if row == 1 else {}
            name = f"b{b} h{h} g{g} t{t} n{n} d{d} blocks{query_block}x{key_block} k{k} {str(dtype)[6:]}"
            yield Case(name, (query, key, value, blocks.int()), options)
    full = torch.arange(4).flip(0).expand(1, 4, 3, 4)
    query, key, value = (torch.randn(1, heads, 50, 24, generator=generator) for heads in (4, 2, 2))
    yield Case("all blocks", (query, key, value, full), {"query_block": 20, "key_block": 15, "return_lse": True})


KERNEL = Kernel(
    name="block-sparse-attention",
    target=f"{__name__}:KERNEL",
    naive=naive.block_sparse_attention,
    fast={"cpu": f"{__name__}.cpu:block_sparse_attention", "triton": f"{__name__}.triton:block_sparse_attention"},
    cases=_cases,
    signatures=f"{__name__}.triton:signatures",
)
