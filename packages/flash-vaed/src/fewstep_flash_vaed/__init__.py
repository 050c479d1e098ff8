"""Flash-VAED (arXiv:2602.19161): pruned and distilled decoders for video VAEs, and the exact ones computed faster."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .algebra import conv3d_to_2d as conv3d_to_2d
    from .algebra import conv3d_to_dw as conv3d_to_dw
    from .algebra import fold_consumer as fold_consumer
    from .algebra import select_channels as select_channels
    from .method import ExactDecode as ExactDecode
    from .method import FlashVAED as FlashVAED

_MODULE_OF = {name: "method" for name in ("ExactDecode", "FlashVAED")}
_MODULE_OF |= {name: "algebra" for name in ("conv3d_to_2d", "conv3d_to_dw", "fold_consumer", "select_channels")}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
