"""Vanilla decoding as LLaDA published it: logits, and a softmax in float64, of every row at every step."""

from __future__ import annotations

from typing import Any

import torch

from .attend import Plan
from .decoder import Decoder
from .state import Answers, State


class AllRows(Decoder):
    """The same tokens as `Decoder`, at the published cost."""

    def __init__(self, model: Any, state: State, dtype: torch.dtype) -> None:
        """`dtype`: of the softmax over all rows."""
        super().__init__(model, state)
        self.dtype = dtype

    def everything(self, plan: Plan | None) -> Answers:
        state, block = self.state, self.state.block
        every = torch.arange(state.length, device=state.tokens.device).expand_as(state.tokens)
        logits = self.model.lm_head(self.hidden(state.tokens, every, plan))
        for row in logits:  # what the published code takes confidences from; one sequence at a time bounds the memory
            row.to(self.dtype).softmax(-1).amax(-1)
        state.stats.refreshes += 1
        rows = slice(block.start - self.shift, block.end - self.shift)
        return Answers(every[:, block.start : block.end], state.masked(), logits[:, rows])
