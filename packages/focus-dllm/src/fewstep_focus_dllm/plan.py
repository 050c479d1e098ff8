"""The cost of `FocusDLLM` for ``fewstep plan``: full passes, partial ones and cached steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.errors import UnsupportedModelError
from fewstep.families import lm_cost, masked_lm
from fewstep.families.sizes import TransformerSizes
from fewstep.roofline import Cost, Operation, Phase, Plan, Workload

from .cost import read_tokens
from .method import FocusDLLM
from .selection import kept_blocks

UNMASKING, SELECTING, MOVING = 130, 75, 1.5
"""Operations of unmasking tokens once a step, of choosing what one sparse layer reads, and of each block that it keeps:
a test counts them."""
PROBABILITIES = 6
"""Times that the logits of a block are read or written, in float64, to find the most confident tokens."""


def plan(method: FocusDLLM, parts: Mapping[str, Any], work: Workload) -> Plan:
    """Decoding one response: every step full, and as Focus-dLLM does it.

    Raises:
        UnsupportedModelError: no masked diffusion LM, or a setting that is not predicted.
    """
    config = parts.get("model")
    if getattr(config, "diffusion", None) not in masked_lm.DIFFUSION.values():
        raise UnsupportedModelError("masked diffusion language models (LLaDA, Dream) are supported, this is none")
    if method.refresh_every or method.delay_sparse or method.suffix is not None or work.length < method.min_prompt:
        raise UnsupportedModelError(
            "a plan knows the defaults of refresh_every, delay_sparse, suffix and min_prompt only"
        )
    sizes = TransformerSizes.of(config)
    return Plan(before=_vanilla(config, sizes, work), after=_focus(method, config, sizes, work))


def _vanilla(config: Any, sizes: TransformerSizes, work: Workload) -> Cost:
    return Cost(
        phases=(_full(sizes, work, work.steps or work.new_tokens),), memory=_memory(config, sizes, work, cached=False)
    )


def _full(sizes: TransformerSizes, work: Workload, times: float) -> Phase:
    """A pass over everything."""
    tokens = work.length + work.new_tokens
    return Phase(name="full pass", operations=_pass(sizes, work, [tokens] * sizes.layers, tokens), times=times)


def _pass(
    sizes: TransformerSizes, work: Workload, keys: list[float], rows: float, selecting: float = 0
) -> tuple[Operation, ...]:
    """All layers for `rows` tokens of each request, of which layer ``l`` reads ``keys[l]``, and one block unmasked."""
    block, batch, element = min(work.block_length, work.new_tokens), work.batch, work.element
    layers = [operation for read in keys for operation in lm_cost.layer(sizes, rows, read, element)]
    logits = min(block, rows)
    unmask = Operation(
        kind="elementwise",
        bytes=PROBABILITIES * 8 * logits * sizes.vocabulary,
        launches=UNMASKING + selecting,
    )
    return tuple(
        Operation(kind=one.kind, flops=batch * one.flops, bytes=batch * one.bytes, launches=one.launches)
        for one in (*layers, lm_cost.head(sizes, logits, element), unmask)
    )


def _focus(method: FocusDLLM, config: Any, sizes: TransformerSizes, work: Workload) -> Cost:
    steps, blocks = work.steps or work.new_tokens, -(-work.new_tokens // work.block_length)
    full = -(-blocks // method.full_every)
    tokens = work.length + work.new_tokens
    read, dense = read_tokens(method, tokens, work.length), method.last_dense_layer(sizes.layers) + 1
    keys = [float(tokens)] * dense + [float(read)] * (sizes.layers - dense)
    phases = [_full(sizes, work, full)]
    if blocks > full:  # the response and the prompt that was read last, against everything
        partial = _pass(sizes, work, [float(tokens)] * sizes.layers, read + 1)
        phases.append(Phase(name="partial pass", operations=partial, times=blocks - full))
    kept = kept_blocks(work.length, method.block_size(work.length), method.keep, method.keep_floor)
    selecting = (sizes.layers - dense) * (SELECTING + MOVING * kept)
    cached = _pass(sizes, work, keys, rows(method, work), selecting)
    phases.append(Phase(name="cached step", operations=cached, times=max(0, steps - blocks)))
    return Cost(phases=tuple(phases), memory=_memory(config, sizes, work, cached=True))


def rows(method: FocusDLLM, work: Workload) -> float:
    """Positions that a cached step computes: focus positions and neighbours, which overlap, in the block.

    Focus positions are taken to stand at random among the ``l`` of the block:

        r = l (1 - (1 - W / l)^kf)
    """
    block = min(work.block_length, work.new_tokens)
    if method.window is None:
        return block
    counts = max(method.min_focus, round(method.focus_ratio * work.new_tokens / (work.steps or work.new_tokens)))
    return block * (1 - max(0.0, 1 - method.window / block) ** counts)


def _memory(config: Any, sizes: TransformerSizes, work: Workload, *, cached: bool) -> dict[str, float]:
    tokens, tied = work.length + work.new_tokens, bool(getattr(config, "tie_word_embeddings", False))
    memory = {
        "weights": lm_cost.weights(sizes, work.element, tied=tied),
        "activations": work.batch * work.element * tokens * (4 * sizes.width + 2.0 * sizes.feed_forward),
    }
    return memory | ({"KV cache": float(work.batch * sizes.kv_bytes(tokens, work.element))} if cached else {})
