"""The cost of Focus-dLLM for a model, from its configuration alone: operations, and bytes of keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.families import masked_lm
from fewstep.families.sizes import TransformerSizes

from .method import FocusDLLM
from .selection import kept_blocks

LENGTHS = (8192, 16384, 32768)
ANSWER, BLOCK = 256, 32
"""Tokens of the response and of a decoding block, as in the paper's figure of throughput."""


def describe(config: Any, folder: Path) -> list[tuple[str, str]]:
    """Lines of name and finding for ``fewstep show focus-dllm --model``.

    Raises:
        UnsupportedModelError: not a LLaDA or Dream configuration.
        BadFileError: a size is missing in it.
    """
    method, lines, stock = FocusDLLM(), masked_lm.describe(config), masked_lm.stock_config(config)
    last = method.last_dense_layer(stock.num_hidden_layers)
    lines.append(("dense layers", f"0 to {last}; the others are sparse"))
    return lines + [(f"prompt of {length:,}", _predicted(method, stock, length)) for length in LENGTHS]


def _predicted(method: FocusDLLM, stock: Any, prompt: int) -> str:
    sizes, tokens = TransformerSizes.of(stock), prompt + ANSWER
    flops = response_flops(sizes, method, prompt=prompt, length=ANSWER, block=BLOCK)
    dense = method.last_dense_layer(sizes.layers) + 1
    read = dense * tokens + (sizes.layers - dense) * read_tokens(method, tokens, prompt)
    cache, step = sizes.kv_bytes(tokens, 2), sizes.kv_bytes(1, 2) // sizes.layers * read
    beyond = " (more than the model's positions)" if tokens > stock.max_position_embeddings else ""
    return (
        f"{flops['vanilla'] / flops['focus']:.1f}x fewer operations than vanilla for {ANSWER} tokens, a cached step "
        f"{flops['fast_step'] / flops['focus_step']:.1f}x fewer than the dual cache; "
        f"KV cache {cache / 2**30:.2f} GiB, of which a step reads {step / 2**30:.2f} GiB{beyond}"
    )


def read_tokens(method: FocusDLLM, tokens: int, prompt: int) -> int:
    """Tokens of `tokens` that a sparse layer reads at most: kept blocks, ragged tail, sinks and response.

    Ts = min(P, kept Bp + P mod Bp + nsink) + G
    """
    block = method.block_size(prompt)
    kept = kept_blocks(prompt, block, method.keep, method.keep_floor) * block
    return min(prompt, kept + prompt % block + method.sinks) + tokens - prompt


def focus_step_flops(
    sizes: TransformerSizes, method: FocusDLLM, *, rows: int, focus: int, tokens: int, prompt: int
) -> float:
    """Operations of a cached step with `rows` active positions, `focus` of them in focus; the last term finds sinks.

    L lin a + 4 a H dh ((ell+1) N + (L-ell-1) Ts) + 2 d V a + (L-ell-1) 2 |F| H dh P / Bp + 2 a H dh N
    """
    dense = method.last_dense_layer(sizes.layers) + 1
    sparse, width = sizes.layers - dense, sizes.heads * sizes.head_dim
    read = dense * tokens + sparse * read_tokens(method, tokens, prompt)
    computed = sizes.layers * sizes.linear * rows + sizes.attention(rows, read) + sizes.logits(rows)
    return computed + sparse * 2 * focus * width * (prompt // method.block_size(prompt)) + 2 * rows * width * tokens


def response_flops(
    sizes: TransformerSizes, method: FocusDLLM, *, prompt: int, length: int, block: int, rows: int = 12
) -> dict[str, float]:
    """Operations of one response by decoding, one token a step, and of a cached step; vanilla has the block's logits.

    Of ``steps = length`` steps the first of each block is a full pass; `rows` are active at the others.
    """
    tokens, borders = prompt + length, -(-length // block)
    full = masked_lm.full_pass_flops(sizes, tokens, block)
    fast = masked_lm.cached_pass_flops(sizes, block, tokens)
    focus = focus_step_flops(sizes, method, rows=rows, focus=method.min_focus, tokens=tokens, prompt=prompt)
    flops = {"vanilla": length * full, "fast_step": fast, "focus_step": focus}
    return flops | {
        name: borders * full + (length - borders) * step for name, step in (("fast", fast), ("focus", focus))
    }
