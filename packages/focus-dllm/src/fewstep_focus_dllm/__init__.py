"""Focus-dLLM: decode with a masked diffusion language model, computing only what is about to be unmasked."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .decoding import Decoding as Decoding
    from .generation import Output as Output
    from .generation import generate as generate
    from .method import FocusDLLM as FocusDLLM
    from .peers import FastDLLM as FastDLLM
    from .peers import FastDLLMPublished as FastDLLMPublished
    from .peers import SparseDLLM as SparseDLLM
    from .peers import Vanilla as Vanilla

_HOME = {
    "decoding": ["Decoding"],
    "generation": ["Output", "generate"],
    "method": ["FocusDLLM"],
    "peers": ["FastDLLM", "FastDLLMPublished", "SparseDLLM", "Vanilla"],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name in _MODULE_OF:  # lazy, so that `fewstep list` does not import torch
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
