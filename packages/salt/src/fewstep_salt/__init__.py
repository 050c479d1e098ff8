"""Salt (arXiv:2604.03118): few-step students whose steps compose, and causal video trained for its own cache."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .consistency import end_points as end_points
    from .consistency import semigroup_loss as semigroup_loss
    from .defect import Defect as Defect
    from .defect import defect_of as defect_of
    from .steps import L2 as L2
    from .steps import L4 as L4
    from .steps import L8 as L8
    from .steps import StepMix as StepMix
    from .steps import Triple as Triple
    from .steps import TripleSampler as TripleSampler

_WHERE = {
    "Defect": "defect",
    "L2": "steps",
    "L4": "steps",
    "L8": "steps",
    "StepMix": "steps",
    "Triple": "steps",
    "TripleSampler": "steps",
    "defect_of": "defect",
    "end_points": "consistency",
    "semigroup_loss": "consistency",
}
__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    if name in _WHERE:  # lazy, so that `fewstep list` does not import torch
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
