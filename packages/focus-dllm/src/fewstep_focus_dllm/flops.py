"""What decoding costs in theory: floating-point operations, and bytes of keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .focused import Pruning
from .select import budget


@dataclass(frozen=True)
class Shape:
    """Sizes of a model that its cost depends on."""

    layers: int
    width: int
    heads: int
    groups: int
    dim: int
    feed_forward: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """The sizes of a stock Llama or Qwen2 configuration."""
        heads = config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            heads,
            config.num_key_value_heads,
            dim,
            config.intermediate_size,
            config.vocab_size,
        )

    @property
    def linear(self) -> int:
        """Operations of one row in one layer outside attention: ``2 (2 d H dh + 2 d Hkv dh + 3 d ff)``."""
        attention = 2 * self.width * self.dim * (self.heads + self.groups)
        return 2 * (attention + 3 * self.width * self.feed_forward)

    def full(self, tokens: int, rows: int) -> int:
        """A pass over all tokens with logits of `rows`: ``L (lin N + 4 N^2 H dh) + 2 d V r``."""
        attention = 4 * tokens**2 * self.heads * self.dim
        return self.layers * (self.linear * tokens + attention) + self.logits(rows)

    def logits(self, rows: int) -> int:
        """``2 d V r``."""
        return 2 * self.width * self.vocabulary * rows

    def cached(self, rows: int, tokens: int) -> int:
        """Rows against a whole cache, as Fast-dLLM has it: ``L (lin r + 4 r N H dh) + 2 d V r``."""
        attention = 4 * rows * tokens * self.heads * self.dim
        return self.layers * (self.linear * rows + attention) + self.logits(rows)

    def focused(self, rows: int, focus: int, tokens: int, prompt: int, pruning: Pruning) -> int:
        """A step of Focus-dLLM with `rows` active positions, `focus` of them in focus.

            L lin a + 4 a H dh ((ell+1) N + (L-ell-1) Ts) + (L-ell-1) 2 |F| H dh P / Bp + 2 a H dh N + 2 d V a

        with ``Ts`` as in `read_tokens`; the last but one term finds the sinks.
        """
        dense = pruning.last_dense + 1
        sparse = self.layers - dense
        read = dense * tokens + sparse * read_tokens(tokens, prompt, pruning)
        width = self.heads * self.dim
        lookup = sparse * 2 * focus * width * (prompt // pruning.block)
        sinks = 2 * rows * width * tokens
        return self.layers * self.linear * rows + 4 * rows * width * read + lookup + sinks + self.logits(rows)

    def key_value_bytes(self, tokens: int, element: int) -> int:
        """Bytes of the keys and values of `tokens` tokens in all layers."""
        return 2 * self.layers * self.groups * self.dim * tokens * element


def read_tokens(tokens: int, prompt: int, pruning: Pruning) -> int:
    """Tokens that a sparse layer reads at most, ``Ts``: kept blocks, ragged tail, sinks and response."""
    kept = budget(prompt, pruning.block, pruning.keep, pruning.floor) * pruning.block
    return min(prompt, kept + prompt % pruning.block + pruning.sinks) + tokens - prompt


@dataclass(frozen=True)
class Cost:
    """Operations of one whole response, by method."""

    vanilla: int
    fast: int
    focus: int
    fast_step: int
    focus_step: int


def cost(shape: Shape, pruning: Pruning, *, prompt: int, length: int, block: int, rows: int = 12) -> Cost:
    """One token a step: ``steps = length`` steps, of which the first of each block is a full pass."""
    tokens, borders = prompt + length, -(-length // block)
    refreshes = borders * shape.full(tokens, block)
    fast_step = shape.cached(block, tokens)
    focus_step = shape.focused(rows, pruning.min_focus, tokens, prompt, pruning)
    return Cost(
        vanilla=length * shape.full(tokens, block),
        fast=refreshes + (length - borders) * fast_step,
        focus=refreshes + (length - borders) * focus_step,
        fast_step=fast_step,
        focus_step=focus_step,
    )
