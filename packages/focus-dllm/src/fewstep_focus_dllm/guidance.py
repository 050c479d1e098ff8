"""Classifier-free guidance (LLaDA, arXiv 2502.09992) around any decoder: a second one that sees no given tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from .decoders import TokenDecoder
from .decoding import BlockLogits, State, Stats


def guided(make: Callable[[Any, State], TokenDecoder], model: Any, state: State) -> TokenDecoder:
    """The decoder that `make` gives, with guidance where the options ask for it."""
    return GuidedDecoder(make, model, state) if state.decoding.cfg_scale else make(model, state)


class GuidedDecoder(TokenDecoder):
    """Two decoders of one kind, each with a cache of its own, and their logits combined.

    The second one reads masks in place of all tokens that were given, the prompt above all. It follows the state of the
    first: both compute the same positions of the response.
    """

    def __init__(self, make: Callable[[Any, State], TokenDecoder], model: Any, state: State) -> None:
        super().__init__(model, state)
        self.given = state.tokens != state.mask_token
        self.blind = copy.copy(state)
        self.conditional, self.unconditional = make(model, state), make(model, self.blind)

    def first_step(self) -> BlockLogits:
        self._follow()
        return self._combine(self.conditional.first_step(), self.unconditional.first_step())

    def later_step(self) -> BlockLogits:
        self._follow()
        return self._combine(self.conditional.later_step(), self.unconditional.later_step())

    def after_step(self, unmasked: Bool[Tensor, "b l"]) -> None:
        self._follow()
        self.conditional.after_step(unmasked)
        self.unconditional.after_step(unmasked)

    def _follow(self) -> None:
        """Give the second decoder the block, confidences and tokens of the first, and statistics of its own."""
        vars(self.blind).update(vars(self.state) | {"hidden": self.given, "stats": Stats()})

    def _combine(self, conditional: BlockLogits, unconditional: BlockLogits) -> BlockLogits:
        """Guided logits, as LLaDA's generation has them, with scale s:

        z = z_un + (s + 1) (z_cond - z_un)
        """
        self.state.stats.add_passes(self.blind.stats)
        with_prompt, without = aligned(conditional), aligned(unconditional)
        scale = self.state.decoding.cfg_scale + 1
        return with_prompt._replace(logits=without.logits + scale * (with_prompt.logits - without.logits))


def aligned(about: BlockLogits) -> BlockLogits:
    """The same logits with valid rows first, by position: two decoders of one state then agree about each row."""
    order = about.positions.masked_fill(~about.valid, torch.iinfo(torch.long).max).argsort(dim=1, stable=True)
    order = order[:, : int(about.valid.sum(1).max())]
    index = order[..., None].expand(-1, -1, about.logits.shape[-1])
    return BlockLogits(about.positions.gather(1, order), about.valid.gather(1, order), about.logits.gather(1, index))
