"""Attention of a few query rows to selected keys: a decoding step that reads a part of its cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.kernels import Case, Kernel
from fewstep.kernels.attention import check_places, check_shapes, run_backend

from . import naive


def gathered_attention(
    query: Float[Tensor, "b h a d"],
    key: Float[Tensor, "b g n d"],
    value: Float[Tensor, "b g n d"],
    tokens: Int[Tensor, "b s"],
    *,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Float[Tensor, "b h a d"] | tuple[Float[Tensor, "b h a d"], Float[Tensor, "b h a"]]:
    """Attention of a few rows to the keys at `tokens`, which all heads and rows share.

        o = softmax_j(scale <q, k_j>) v_j      lse = log sum_j exp(scale <q, k_j>)      j over tokens that are not -1

    (Attention is all you need, arXiv 1706.03762, equation 1, over a selection.) Runs of consecutive tokens are read
    fastest. Gradients are those of the specification.

    Args:
        query: a few rows, some 1 to 64; head ``i`` reads KV head ``i // (h / g)``.
        key: post-RoPE keys; may be a view into a larger buffer.
        value: values, of the shape of `key`.
        tokens: positions in ``[0, n)``, each listed once, in any order; -1 for none, so that sequences may differ.
        scale: of the scores; None for ``1 / sqrt(d)``.
        return_lse: also return the logarithm of the sum of exponentials, which
            `fewstep.kernels.attention.merge_attention` takes.
        backend: ``naive``, ``cpu`` or ``triton``; None picks by device, see `Kernel.chosen_backend`.

    Returns:
        Output in the dtype of `query`; with `return_lse` also the LSE in fp32. Without tokens they are 0 and -inf.

    Raises:
        ValueError: shapes, dtypes or positions (these on a CPU only) do not fit, in one sentence.
        ImportError: the backend was asked for by name and is not installed.
    """
    check_shapes(query, key, value)
    if tokens.ndim != 2 or tokens.shape[0] != query.shape[0]:
        raise ValueError(f"tokens must be [{query.shape[0]}, s], found {tuple(tokens.shape)}")
    backend = backend or KERNEL.exact_backend(query)
    if backend != "cpu" or tokens.dtype not in (torch.int32, torch.int64):  # that one refuses numbers by itself
        check_places(tokens, key.shape[2], "tokens")
    options = {"scale": scale, "return_lse": return_lse}
    return run_backend(KERNEL, backend, (query, key, value), tokens, options)


def _cases() -> Iterator[Case]:
    """GQA 1 to 4, odd head sizes, one row and many, runs and single tokens, missing and no tokens, views of buffers."""
    sizes = (
        # b, h, g, a, n, d, s
        (1, 4, 4, 8, 301, 64, 96),
        (2, 6, 2, 5, 77, 40, 33),
        (2, 4, 1, 1, 130, 96, 64),
        (1, 2, 1, 64, 97, 128, 97),
        (3, 3, 3, 3, 41, 17, 1),
        (1, 2, 2, 4, 19, 32, 0),
    )
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    generator = torch.Generator().manual_seed(0)
    for row, (b, h, g, a, n, d, s) in enumerate(sizes):
        for column, return_lse in enumerate((True, False)):
            dtype = dtypes[(row + column) % 3]
            query = torch.randn(b, h, a, d, generator=generator).to(dtype)
            key, value = (torch.randn(b, g, n + 3, d, generator=generator).to(dtype)[:, :, :n] for _ in range(2))
            tokens = torch.stack([torch.randperm(n, generator=generator)[:s] for _ in range(b)])
            if column:  # runs, and a sequence that has fewer tokens or none
                tokens = tokens.sort().values
                tokens[-1, s // 3 * (b < 3) :: 2 if b < 3 else 1] = -1
            options = {"return_lse": return_lse} | ({"scale": 0.3} if row == 1 else {})
            yield Case(f"b{b} h{h} g{g} a{a} n{n} d{d} s{s} {str(dtype)[6:]}", (query, key, value, tokens), options)


KERNEL = Kernel(
    name="gathered-attention",
    target=f"{__name__}:KERNEL",
    naive=naive.gathered_attention,
    fast={"cpu": f"{__name__}.cpu:gathered_attention", "triton": f"{__name__}.triton:gathered_attention"},
    cases=_cases,
    signatures=f"{__name__}.triton:signatures",
)
