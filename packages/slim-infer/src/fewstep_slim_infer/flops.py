"""What a pruned prefill costs in theory, and so how much faster it can be (FLOP model of SlimInfer's card)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def prefill_flops(config: Any, tokens: Sequence[int], *, causal: bool = True) -> int:
    """Floating-point operations of a prompt of which layer ``l`` sees ``tokens[l]`` tokens.

        sum_l  2 (2 d H dh + 2 d Hkv dh) T_l  +  6 d ff T_{l+1}  +  2 H dh T_l^2     and one row of the head, 2 d V

    A layer's feed-forward runs on the tokens of the next layer, since pruning comes before it. Scoring is left out: it
    is below a thousandth of one layer.

    Args:
        config: transformers configuration of a Llama-like model.
        tokens: one number for each layer; all equal to the prompt length for the unchanged model.
        causal: attention skips the masked half, as fused kernels do; else ``4 H dh T_l^2``.
    """
    width, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or width // heads
    projections = 4 * width * dim * (heads + groups)
    feed_forward = 6 * width * config.intermediate_size
    pair = (2 if causal else 4) * heads * dim
    total = 2 * width * config.vocab_size
    for now, after in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
        total += projections * now + feed_forward * after + pair * now**2
    return total
