"""fewstep: make generative models that you already have cheaper to run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .applied import Applied as Applied
    from .cards import Card as Card
    from .cards import hookimpl as hookimpl
    from .contract import Loaded as Loaded
    from .errors import AssetMissing as AssetMissing
    from .errors import BadFileError as BadFileError
    from .errors import FewstepError as FewstepError
    from .errors import SeamConflictError as SeamConflictError
    from .errors import UnknownNameError as UnknownNameError
    from .errors import UnsupportedModelError as UnsupportedModelError
    from .loaders import load as load
    from .method import Method as Method

_HOME = {
    "applied": ["Applied"],
    "cards": ["Card", "hookimpl"],
    "contract": ["Loaded"],
    "errors": [
        "AssetMissing",
        "BadFileError",
        "FewstepError",
        "SeamConflictError",
        "UnknownNameError",
        "UnsupportedModelError",
    ],
    "loaders": ["load"],
    "method": ["Method"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
