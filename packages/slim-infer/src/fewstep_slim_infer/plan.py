"""The cost of `SlimInfer` for ``fewstep plan``: tokens that each layer sees, from the configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fewstep.errors import UnsupportedModelError
from fewstep.families import causal_lm, lm_cost
from fewstep.roofline import Cost, Operation, Phase, Plan, Workload

from .method import SlimInfer
from .select import Budget, blocks_kept, forced_blocks

CHOOSING = 40
"""Operations that choose the blocks of one segment."""


def plan(method: SlimInfer, parts: Mapping[str, Any], work: Workload) -> Plan:
    """Prefill and decoding of a causal LM, dense and on the tokens that the budgets leave.

    Raises:
        UnsupportedModelError: no Llama-like causal LM, or a setting that is not predicted.
    """
    config: Any = parts.get("model")
    causal_lm.check_config(config)
    if method.offload or method.decode_from == "recompute":
        raise UnsupportedModelError(
            "a plan knows no transfers and no recomputed blocks: leave offload and recompute out"
        )
    settled = method.resolve(config)
    tokens = tokens_by_layer(settled, settled.keep, config.num_hidden_layers, work.length)
    after = lm_cost.pruned(config, work, tokens)
    if settled.decode_keep is not None:
        active = tokens_by_layer(settled, settled.decode_keep, config.num_hidden_layers, work.length)
        decoding = lm_cost.pruned(config, work, [min(pair) for pair in zip(tokens, active, strict=True)])
        after = Cost(phases=(after.phases[0], decoding.phases[1]), memory=after.memory)
    prefill, *rest = after.phases
    return Plan(
        before=lm_cost.dense(config, work),
        after=replace(after, phases=(_choosing(prefill, len(settled.entry or ())), *rest)),
    )


def tokens_by_layer(settled: SlimInfer, keep: Any, layers: int, prompt: int) -> list[int]:
    """Tokens of a prompt that each layer sees, with budgets for the segments of a method without open fields."""
    block, now, tokens = settled.block or 1, prompt, []
    budgets: dict[int, Budget] = dict(zip(settled.entry or (), keep, strict=True))
    for layer in range(layers):
        if layer in budgets:
            sinks, tails, window = settled.sink_blocks, settled.tail_blocks, settled.window or 1
            forced = int(forced_blocks(now, block, sinks=sinks, tails=tails, window=window).sum())
            now = min(now, blocks_kept(budgets[layer], prompt, block, forced) * block)
        tokens.append(now)
    return tokens


def _choosing(prefill: Phase, entries: int) -> Phase:
    return replace(
        prefill, operations=(*prefill.operations, Operation(kind="elementwise", launches=CHOOSING * entries))
    )
