"""Sketch: a sparse attention. Each token sees the first tokens of the prompt and a window before itself."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from fewstep import Applied, Method
from fewstep.families import causal_lm
from fewstep.families.attention import wrap_attention


@dataclass(frozen=True, kw_only=True)
class SinkWindow(Method):
    """Attention sinks and a sliding window (StreamingLLM), as a mask; a kernel would skip what it hides."""

    name: ClassVar[str] = "sink-window"
    seams: ClassVar[frozenset[str]] = frozenset({"attention"})
    sinks: int = 4
    window: int = 64

    def wrap(self, attention):
        def attend(module, query, key, value, attention_mask, **kwargs):
            last, place = key.shape[2] - query.shape[2], torch.arange(key.shape[2], device=key.device)
            row = place[last:, None]
            seen = (place <= row) & ((place < self.sinks) | (place > row - self.window))
            seen = seen[None, None] if attention_mask is None else attention_mask & seen
            return attention(module, query, key, value, seen, **kwargs)

        return attend

    def apply(self, model):
        causal_lm.check(model)
        with Applied() as undo:
            undo.occupy(model, self)
            wrap_attention(undo, model, f"sink-window-{self.sinks}-{self.window}", self.wrap)
            return undo.pop_all()
