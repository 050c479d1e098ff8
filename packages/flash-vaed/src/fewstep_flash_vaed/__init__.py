"""Flash-VAED (arXiv:2602.19161): pruned and distilled decoders for video VAEs, and the exact ones computed faster."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .method import ExactDecode as ExactDecode
    from .method import FlashVAED as FlashVAED
    from .operators import conv3d_to_2d as conv3d_to_2d
    from .operators import conv3d_to_dw as conv3d_to_dw
    from .operators import fold_consumer as fold_consumer
    from .select import select_channels as select_channels

_HOME = {
    "method": ["ExactDecode", "FlashVAED"],
    "operators": ["conv3d_to_2d", "conv3d_to_dw", "fold_consumer"],
    "select": ["select_channels"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
