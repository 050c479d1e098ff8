"""Salt (arXiv:2604.03118): few-step students whose steps compose, and causal video trained for its own cache."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .alignment import Features as Features
    from .alignment import make_alignment as make_alignment
    from .consistency import end_points as end_points
    from .consistency import semigroup_loss as semigroup_loss
    from .defect import Defect as Defect
    from .defect import defect_of as defect_of
    from .discrepancy import relation_distance as relation_distance
    from .losses import AlignmentLoss as AlignmentLoss
    from .losses import SemigroupLoss as SemigroupLoss
    from .method import Salt as Salt
    from .sc_dmd import SCDMD as SCDMD
    from .steps import L2 as L2
    from .steps import L4 as L4
    from .steps import L8 as L8
    from .steps import StepMix as StepMix
    from .steps import Triple as Triple
    from .steps import TripleSampler as TripleSampler

_WHERE = {
    "AlignmentLoss": "losses",
    "Defect": "defect",
    "Features": "alignment",
    "L2": "steps",
    "L4": "steps",
    "L8": "steps",
    "SCDMD": "sc_dmd",
    "Salt": "method",
    "SemigroupLoss": "losses",
    "StepMix": "steps",
    "Triple": "steps",
    "TripleSampler": "steps",
    "defect_of": "defect",
    "end_points": "consistency",
    "make_alignment": "alignment",
    "relation_distance": "discrepancy",
    "semigroup_loss": "consistency",
}
__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    if name in _WHERE:  # lazy, so that `fewstep list` does not import torch
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
