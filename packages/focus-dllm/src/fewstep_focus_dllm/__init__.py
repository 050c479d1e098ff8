"""Focus-dLLM: decode with a masked diffusion language model, computing only what is about to be unmasked."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .baselines import FastDLLM as FastDLLM
    from .baselines import FastDLLMPublished as FastDLLMPublished
    from .baselines import SparseDLLM as SparseDLLM
    from .baselines import Vanilla as Vanilla
    from .decoding import DecodingOptions as DecodingOptions
    from .generation import Output as Output
    from .generation import generate as generate
    from .method import FocusDLLM as FocusDLLM

_MODULE_OF = dict.fromkeys(("FastDLLM", "FastDLLMPublished", "SparseDLLM", "Vanilla"), "baselines")
_MODULE_OF |= {"DecodingOptions": "decoding", "Output": "generation", "generate": "generation", "FocusDLLM": "method"}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name in _MODULE_OF:  # lazy, so that `fewstep list` does not import torch
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
