"""MoDES (arXiv:2511.15690): skip experts of a mixture by token, layer and modality."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .baselines import NAEE as NAEE
    from .baselines import REAP as REAP
    from .baselines import MCMoE as MCMoE
    from .baselines import ReduceK as ReduceK
    from .baselines import Registered as Registered
    from .calibration import Importance as Importance
    from .calibration import Reference as Reference
    from .calibration import calibrate as calibrate
    from .frontier import Evaluator as Evaluator
    from .frontier import search as search
    from .method import DMT as DMT
    from .method import GMLG as GMLG
    from .method import MoDES as MoDES
    from .method import Single as Single

_MODULE_OF = {
    **dict.fromkeys(("MCMoE", "NAEE", "REAP", "ReduceK", "Registered"), "baselines"),
    **dict.fromkeys(("Importance", "Reference", "calibrate"), "calibration"),
    **dict.fromkeys(("DMT", "GMLG", "MoDES", "Single"), "method"),
    **dict.fromkeys(("Evaluator", "search"), "frontier"),
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
