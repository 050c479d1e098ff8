"""Operations of Llama-like transformers, layer by layer: what causal and masked language models share in a plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..roofline import Cost, Operation, Phase, Workload
from .sizes import TransformerSizes

LAUNCHES = 56
"""Operations in one stock layer of transformers, views included; a test counts them."""
_HIDDEN, _ROTARY, _GATED = 20, 8, 5
"""Elements that unfused norms and residuals, rotary embedding, and gate read and write for each element of theirs."""


def layer(
    sizes: TransformerSizes,
    rows: float,
    keys: float,
    element: int,
    *,
    mlp_rows: float | None = None,
    causal: bool = False,
) -> tuple[Operation, ...]:
    """One layer for `rows` tokens that read `keys` each.

    Args:
        sizes: of the model.
        rows: tokens that attention and its projections run on.
        keys: tokens that each of them may read.
        element: bytes of a number.
        mlp_rows: tokens of the feed-forward, where they are others.
        causal: half of attention is masked and skipped.
    """
    after = rows if mlp_rows is None else mlp_rows
    width, inner = sizes.width, sizes.heads * sizes.head_dim
    both = 2 * sizes.kv_heads * sizes.head_dim
    moved = rows * (2 * width + 2 * inner + both)
    return (
        Operation(flops=sizes.projections * rows, bytes=element * (sizes.projections / 2 + moved)),
        Operation(
            kind="attention",
            flops=sizes.attention(rows, keys) / (2 if causal else 1),
            bytes=element * (both * keys + 2 * inner * rows),
        ),
        Operation(
            flops=sizes.gated_mlp * after,
            bytes=element * (sizes.gated_mlp / 2 + after * (2 * width + 3 * sizes.feed_forward)),
        ),
        Operation(
            kind="elementwise",
            bytes=element
            * (rows * (_HIDDEN * width + _ROTARY * (inner + both / 2)) + after * _GATED * sizes.feed_forward),
            launches=LAUNCHES,
        ),
    )


def head(sizes: TransformerSizes, rows: float, element: int) -> Operation:
    """Logits of `rows` tokens."""
    weights = sizes.width * sizes.vocabulary
    return Operation(
        flops=2 * weights * rows, bytes=element * (weights + rows * (sizes.width + sizes.vocabulary)), launches=8
    )


def prefill(sizes: TransformerSizes, tokens: Sequence[int], element: int, batch: int = 1) -> Phase:
    """Read a prompt of which layer ``l`` sees ``tokens[l]``; its feed-forward runs on the tokens of the next layer."""
    pairs = zip(tokens, [*tokens[1:], tokens[-1]], strict=True)
    layers = _batched([layer(sizes, now, now, element, mlp_rows=after, causal=True) for now, after in pairs], batch)
    return Phase(name="prefill", operations=(*layers, head(sizes, batch, element)))


def decode(sizes: TransformerSizes, keys: Sequence[float], element: int, times: int, batch: int = 1) -> Phase:
    """One new token that reads ``keys[l]`` cached tokens in layer ``l``."""
    layers: list[tuple[Operation, ...]] = []
    for read in keys:
        projections, attention, mlp, rest = layer(sizes, batch, read, element)
        layers.append((projections, _reads(attention, batch), mlp, rest))
    return Phase(name="decode", operations=(*_flat(layers), head(sizes, batch, element)), times=times)


def dense(config: Any, work: Workload) -> Cost:
    """Prefill and decoding of an unchanged causal language model."""
    return pruned(config, work, [work.length] * config.num_hidden_layers)


def pruned(config: Any, work: Workload, tokens: Sequence[int]) -> Cost:
    """Prefill and decoding of a causal language model of which layer ``l`` sees, and caches, ``tokens[l]``."""
    sizes, middle = TransformerSizes.of(config), work.new_tokens / 2
    cached = sum(tokens) / len(tokens) + work.new_tokens
    return Cost(
        phases=(
            prefill(sizes, tokens, work.element, work.batch),
            decode(sizes, [kept + middle for kept in tokens], work.element, work.new_tokens, work.batch),
        ),
        memory={
            "weights": weights(sizes, work.element, tied=bool(getattr(config, "tie_word_embeddings", False))),
            "KV cache": work.batch * sizes.kv_bytes(1, work.element) * cached,
            "activations": work.batch * work.element * max(tokens) * (4 * sizes.width + 2 * sizes.feed_forward),
        },
    )


def weights(sizes: TransformerSizes, element: int, *, tied: bool) -> float:
    """Bytes of all matrices: ``e (L lin / 2 + d V (1 or 2))``."""
    return element * (sizes.layers * sizes.linear / 2 + sizes.width * sizes.vocabulary * (1 if tied else 2))


def _reads(attention: Operation, batch: int) -> Operation:
    """Attention of one token of each of `batch` requests to a cache of its own."""
    return Operation(kind="attention", flops=attention.flops, bytes=batch * attention.bytes)


def _batched(layers: Iterable[tuple[Operation, ...]], batch: int) -> list[Operation]:
    """The same for `batch` prompts at once: weights are still read once, which prompts hide anyway."""
    flat = _flat(layers)
    return [
        Operation(kind=one.kind, flops=batch * one.flops, bytes=batch * one.bytes, launches=one.launches)
        for one in flat
    ]


def _flat(layers: Iterable[tuple[Operation, ...]]) -> list[Operation]:
    return [operation for operations in layers for operation in operations]
