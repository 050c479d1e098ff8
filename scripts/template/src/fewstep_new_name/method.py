"""Round the weights of all linear layers inside the decoder layers of a language model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from fewstep import Applied, Method
from fewstep.families import causal_lm, unwrapped
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class NewName(Method):
    """Weights on a grid: a stand-in for your method, which shows every part that one needs."""

    name: ClassVar[str] = "new-name"
    seams: ClassVar[frozenset[str]] = frozenset({"transformer-weights"})

    step: float = 0.1
    """Distance between grid points, as a share of the largest weight of each row; 0 leaves the weights alone."""

    def __post_init__(self) -> None:
        if not 0 <= self.step <= 1:
            raise ValueError(f"step is {self.step}; it must be between 0 (no rounding) and 1")

    def apply(self, model: nn.Module) -> Applied:
        """Swap the weights for rounded ones; see `Method.apply`."""
        model = unwrapped(model)  # of PEFT and torch.compile
        decoder = causal_lm.check(model)
        with Applied() as undo:
            undo.needs_weights(decoder, self)
            undo.occupy(model, self)
            for name, module in decoder.layers.named_modules():
                if isinstance(module, nn.Linear) and ".lora_" not in name:  # adapters act on top
                    original = module.weight
                    undo.callback(setattr, module, "weight", original)  # pushed first: an exception undoes it too
                    module.weight = nn.Parameter(rounded(original.detach(), self.step), original.requires_grad)
            return undo.pop_all()

    def identity(self) -> Self:
        return replace(self, step=0.0)


def rounded(weight: Tensor, step: float) -> Tensor:
    """``w -> d * round(w / d)`` with ``d = step * max |w|`` of each row of ``weight [out, in]``."""
    if step == 0:
        return weight
    grid = (step * weight.abs().amax(1, keepdim=True)).clamp_min(torch.finfo(weight.dtype).tiny)
    return grid * torch.round(weight / grid)
