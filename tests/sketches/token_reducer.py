"""Sketch: a token reducer. Every other picture token leaves the sequence before the first layer."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar

import torch
from fewstep import Applied, Method
from fewstep.families import vlm

modalities: ContextVar = ContextVar("modalities", default=None)  # of the call that is running


@dataclass(frozen=True, kw_only=True)
class EveryOther(Method):
    """Keep one of `stride` picture tokens; text stays, positions stay those of the whole prompt."""

    name: ClassVar[str] = "every-other"
    seams: ClassVar[frozenset[str]] = frozenset({"hidden-tokens"})
    stride: int = 2

    def apply(self, model):
        decoder, special, vision = vlm.check(model), vlm.special_ids(model), vlm.vision_ids(model)

        def note(_module, _args, kwargs):
            modalities.set(vlm.modality(kwargs, special, vision))

        def reduce(_module, args, kwargs):
            hidden, picture = kwargs["inputs_embeds"], modalities.get()[0] == vlm.VISION
            kept = (~picture | (picture.cumsum(0) % self.stride == 0)).nonzero()[:, 0]
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None, kept]
            shorter = {"inputs_embeds": hidden[:, kept], "position_ids": positions, "attention_mask": None}
            return args, {**kwargs, **shorter}

        with Applied() as undo:
            undo.occupy(model, self)
            undo.callback(model.register_forward_pre_hook(note, with_kwargs=True).remove)
            undo.callback(decoder.register_forward_pre_hook(reduce, with_kwargs=True).remove)
            return undo.pop_all()
