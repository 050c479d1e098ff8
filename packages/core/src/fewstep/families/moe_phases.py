"""Operations of a mixture of experts, prefill and decoding, with a share of the pairs of token and expert skipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..roofline import Cost, Operation, Phase, Workload
from .lm_cost import LAUNCHES
from .moe import MoeSite
from .moe_cost import MoeSizes

ROUTING = 30
"""Operations of a router and of gathering and scattering the pairs of one layer."""
_HIDDEN, _ROTARY, _PAIR, _INNER = 20, 8, 4, 5
"""Elements read and written, for each of the hidden state, rotary embedding, pair, and gated inner state of a pair."""


def cost(sizes: MoeSizes, sites: Sequence[MoeSite], config: Any, work: Workload, skipped: float) -> Cost:
    """Phases and memory with a share `skipped` of all pairs left out.

    Args:
        sizes: of the model.
        sites: its layers with experts.
        config: of its language model.
        work: one request.
        skipped: in [0, 1].
    """
    reading, middle = work.length, work.length + work.new_tokens / 2
    half = work.length / 2  # of attention is masked
    prefill = _pass(sizes, sites, config, work, work.batch * reading, half, work.batch, skipped)
    decode = _pass(sizes, sites, config, work, work.batch, middle, work.batch, skipped)
    heads = 2 * sizes.layers * config.num_key_value_heads * _head(config)
    return Cost(
        phases=(
            Phase(name="prefill", operations=prefill),
            Phase(name="decode", operations=decode, times=work.new_tokens),
        ),
        memory={
            "weights": sizes.weight_bytes(work.element),
            "KV cache": work.batch * heads * work.element * (work.length + work.new_tokens),
        },
    )


def _head(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _pass(
    sizes: MoeSizes,
    sites: Sequence[MoeSite],
    config: Any,
    work: Workload,
    rows: float,
    keys: float,
    requests: int,
    skipped: float,
) -> tuple[Operation, ...]:
    """All layers for `rows` tokens that read `keys` each, and the head for one token of each request."""
    element, width, count, top = work.element, config.hidden_size, sites[0].count, sites[0].top_k
    pairs = rows * top * (1 - skipped)
    inner = sizes.active / (3 * width * top * len(sites))
    touched = 1 - (1 - 1 / count) ** pairs  # the share of experts that at least one pair goes to
    cached = 2 * config.num_key_value_heads * _head(config) * sizes.layers
    vocabulary = config.vocab_size * width
    elementwise = rows * sizes.layers * (_HIDDEN * width + _ROTARY * config.num_attention_heads * _head(config))
    return (
        Operation(flops=2 * sizes.dense * rows, bytes=element * sizes.dense),
        Operation(
            flops=2 * sizes.active * rows * (1 - skipped),
            bytes=element * sizes.routed * touched,
        ),
        Operation(
            kind="attention",
            flops=2 * sizes.attention * rows * keys,
            bytes=element * cached * keys * requests * (2 if rows > requests else 1),
        ),
        Operation(
            kind="elementwise",
            bytes=element * (elementwise + len(sites) * pairs * (_PAIR * width + _INNER * inner)),
            launches=LAUNCHES * sizes.layers + ROUTING * len(sites),
        ),
        Operation(flops=2 * vocabulary * requests, bytes=element * vocabulary, launches=8),
    )
