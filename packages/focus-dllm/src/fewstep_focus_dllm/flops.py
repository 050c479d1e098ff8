"""What decoding costs in theory: floating-point operations, and bytes of keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.families.masked_lm import cached_pass_flops, full_pass_flops
from fewstep.families.sizes import TransformerSizes

from .focused import Pruning
from .select import budget


def focused_step_flops(
    sizes: TransformerSizes, rows: int, focus: int, tokens: int, prompt: int, pruning: Pruning
) -> float:
    """Operations of a step of Focus-dLLM with `rows` active positions, `focus` of them in focus.

        L lin a + 4 a H dh ((ell+1) N + (L-ell-1) Ts) + (L-ell-1) 2 |F| H dh P / Bp + 2 a H dh N + 2 d V a

    with ``Ts`` as in `read_tokens`; the last but one term finds the sinks.
    """
    dense = pruning.last_dense + 1
    sparse = sizes.layers - dense
    read = dense * tokens + sparse * read_tokens(tokens, prompt, pruning)
    width = sizes.heads * sizes.head_dim
    summaries = sparse * 2 * focus * width * (prompt // pruning.block)
    sinks = 2 * rows * width * tokens
    attention = sizes.attention(rows, read)
    return sizes.layers * sizes.linear * rows + attention + summaries + sinks + sizes.logits(rows)


def read_tokens(tokens: int, prompt: int, pruning: Pruning) -> int:
    """Tokens that a sparse layer reads at most, ``Ts``: kept blocks, ragged tail, sinks and response."""
    kept = budget(prompt, pruning.block, pruning.keep, pruning.floor) * pruning.block
    return min(prompt, kept + prompt % pruning.block + pruning.sinks) + tokens - prompt


@dataclass(frozen=True)
class Cost:
    """Operations of one whole response, by method."""

    vanilla: float
    fast: float
    focus: float
    fast_step: float
    focus_step: float


def cost(sizes: TransformerSizes, pruning: Pruning, *, prompt: int, length: int, block: int, rows: int = 12) -> Cost:
    """One token a step: ``steps = length`` steps, of which the first of each block is a full pass."""
    tokens, borders = prompt + length, -(-length // block)
    refreshes = borders * full_pass_flops(sizes, tokens, block)
    fast_step = cached_pass_flops(sizes, block, tokens)
    focus_step = focused_step_flops(sizes, rows, pruning.min_focus, tokens, prompt, pruning)
    return Cost(
        vanilla=length * full_pass_flops(sizes, tokens, block),
        fast=refreshes + (length - borders) * fast_step,
        focus=refreshes + (length - borders) * focus_step,
        fast_step=fast_step,
        focus_step=focus_step,
    )
