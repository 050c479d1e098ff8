"""The prompt as the next layer sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fewstep.families.causal_lm import Rope
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass
class Tokens:
    """Survivors of each prompt in order, one prompt a row, padding on the left."""

    hidden: Float[Tensor, "r n d"]
    rope: Rope
    """Positions; survivors keep theirs."""
    number: Int[Tensor, "r n"]
    """Index of each token in its own prompt, counted from the first real token; negative in padding."""
    valid: Bool[Tensor, "r n"] | None = None
    """True for real columns; None when all are real."""

    @classmethod
    def of_prompt(cls, hidden: Tensor, rope: Rope, attention_mask: Tensor | None) -> Tokens:
        """A whole prompt.

        Raises:
            ValueError: a row has no token, or padding on the right.
        """
        number = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
        if hidden.shape[1] == 0 or (attention_mask is not None and not attention_mask.any(1).all()):
            raise ValueError("the prompt is empty: every row needs at least one token")
        if attention_mask is None or attention_mask.all():
            return cls(hidden, rope, number)
        valid = attention_mask.bool()
        pads = (~valid).sum(1, keepdim=True)
        if not torch.equal(valid, number >= pads):
            raise ValueError("pad prompts on the left (tokenizer.padding_side = 'left'): the last column must be real")
        return cls(hidden, rope, number - pads, valid)

    @property
    def lengths(self) -> list[int]:
        """Real tokens of each row."""
        if self.valid is None:
            return [self.hidden.shape[1]] * self.hidden.shape[0]
        return self.valid.sum(1).tolist()

    def mask(self) -> Bool[Tensor, "r 1 n n"] | None:
        """Causal mask without padding; None where plain causal attention is meant."""
        if self.valid is None:
            return None
        n = self.valid.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool, device=self.valid.device).tril()
        itself = torch.eye(n, dtype=torch.bool, device=self.valid.device)  # the softmax of a padding row needs a key
        return (causal & self.valid[:, None, None, :]) | itself

    def keep(self, rows: list[Int[Tensor, " k"]]) -> Tokens:
        """Only these columns of each row (ascending), padded on the left to one length."""
        longest = max(r.numel() for r in rows)
        index = torch.stack([nn.functional.pad(r, (longest - r.numel(), 0)) for r in rows])
        short = torch.tensor([longest - r.numel() for r in rows], device=index.device)
        valid = torch.arange(longest, device=index.device) >= short[:, None] if short.any() else None
        cos, sin = self.rope
        number = _gather(self.number, index)
        return Tokens(
            hidden=_gather(self.hidden, index),
            rope=(_gather(cos, index), _gather(sin, index)),
            number=number if valid is None else number.masked_fill(~valid, -1),
            valid=valid,
        )


def _gather(values: Tensor, index: Int[Tensor, "r k"]) -> Tensor:
    if index.shape[0] == 1:
        return values.index_select(1, index[0])
    each = torch.arange(index.shape[0], device=index.device)[:, None]
    return values.expand(index.shape[0], *values.shape[1:])[each, index]
