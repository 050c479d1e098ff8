"""What Focus-dLLM would do with a model, from its configuration alone: sizes, memory, predicted speed-up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.errors import UnsupportedModelError
from fewstep.families.llada_format import checkpoint_names
from fewstep.families.masked_lm import from_config, stock_config
from fewstep.families.sizes import TransformerSizes

from .flops import cost, read_tokens
from .method import FocusDLLM

LENGTHS = (8192, 16384, 32768)
ANSWER, BLOCK = 256, 32
"""Tokens of the response and of a decoding block, as in the paper's figure of throughput."""


def describe(config: Any, folder: Path) -> list[tuple[str, str]]:
    """Lines of name and finding.

    Raises:
        UnsupportedModelError: not a LLaDA or Dream configuration.
    """
    method = FocusDLLM()
    plain = config if isinstance(config, Mapping) else config.to_dict()
    if plain.get("model_type") not in ("llada", "Dream"):
        raise UnsupportedModelError(
            f"{plain.get('model_type')!r} is no masked diffusion language model; supported: LLaDA and Dream"
        )
    stock, names = stock_config(plain), checkpoint_names(plain)
    parameters = sum(weight.numel() for weight in from_config(plain).parameters())
    sizes = TransformerSizes.of(stock)
    lines = [
        ("family", f"{stock.diffusion}, as {stock.architectures[0]} with attention both ways"),
        ("weights", f"{parameters / 1e9:.2f} G parameters in {len(names)} tensors, {gib(2 * parameters)} in bfloat16"),
        ("layers", f"{sizes.layers}: 0 to {method.resolve(stock, LENGTHS[0]).last_dense} dense, the others sparse"),
        ("positions", f"{stock.max_position_embeddings:,}"),
    ]
    return lines + [(f"prompt of {length:,}", _at(sizes, method, stock, length)) for length in LENGTHS]


def _at(sizes: TransformerSizes, method: FocusDLLM, stock: Any, prompt: int) -> str:
    pruning, tokens = method.resolve(stock, prompt), prompt + ANSWER
    found = cost(sizes, pruning, prompt=prompt, length=ANSWER, block=BLOCK)
    dense = pruning.last_dense + 1
    read = dense * tokens + (sizes.layers - dense) * read_tokens(tokens, prompt, pruning)
    cache, step = sizes.kv_bytes(tokens, 2), sizes.kv_bytes(1, 2) // sizes.layers * read
    beyond = " (more than the model's positions)" if tokens > stock.max_position_embeddings else ""
    return (
        f"{found.vanilla / found.focus:.1f}x fewer operations than vanilla for {ANSWER} tokens, a cached step "
        f"{found.fast_step / found.focus_step:.1f}x fewer than the dual cache; KV cache {gib(cache)}, of which a step "
        f"reads {gib(step)}{beyond}"
    )


def gib(size: float) -> str:
    """Bytes as ``16.1 GiB``."""
    return f"{size / 2**30:.2f} GiB"
