"""MoDES (arXiv:2511.15690): skip experts of a mixture by token, layer and modality."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calibration import Importance as Importance
    from .calibration import calibrate as calibrate
    from .method import DMT as DMT
    from .method import GMLG as GMLG
    from .method import MoDES as MoDES
    from .method import Single as Single
    from .peers import NAEE as NAEE
    from .peers import REAP as REAP
    from .peers import MCMoE as MCMoE
    from .peers import ReduceK as ReduceK
    from .peers import Registered as Registered
    from .skipping import Skipping as Skipping
    from .thresholds import search as search

_MODULE_OF = {
    **dict.fromkeys(("Importance", "calibrate"), "calibration"),
    **dict.fromkeys(("DMT", "GMLG", "MoDES", "Single"), "method"),
    **dict.fromkeys(("MCMoE", "NAEE", "REAP", "ReduceK", "Registered"), "peers"),
    "search": "thresholds",
    "Skipping": "skipping",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
