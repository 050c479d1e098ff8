"""Sizes of a Llama-like transformer, and the operations and bytes that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TransformerSizes:
    """Sizes that the cost of a decoder of gated feed-forward layers depends on."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> TransformerSizes:
        """Sizes of a transformers configuration like Llama's or Qwen2's."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            feed_forward=config.intermediate_size,
            vocabulary=config.vocab_size,
        )

    @property
    def projections(self) -> int:
        """Operations of one token in the projections of one attention layer: ``2 (2 d H dh + 2 d Hkv dh)``."""
        return 4 * self.width * self.head_dim * (self.heads + self.kv_heads)

    @property
    def gated_mlp(self) -> int:
        """Operations of one token in one feed-forward layer: ``6 d ff``."""
        return 6 * self.width * self.feed_forward

    @property
    def linear(self) -> int:
        """Operations of one token in one layer outside attention."""
        return self.projections + self.gated_mlp

    def attention(self, queries: float, keys: float) -> float:
        """Operations of one layer's attention of `queries` rows to `keys` each: ``4 r N H dh``."""
        return 4 * queries * keys * self.heads * self.head_dim

    def logits(self, rows: int) -> int:
        """Operations of the head for `rows` tokens: ``2 d V r``."""
        return 2 * self.width * self.vocabulary * rows

    def kv_bytes(self, tokens: int, element: int) -> int:
        """Bytes of keys and values of `tokens` tokens in all layers, at `element` bytes a number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * tokens * element
