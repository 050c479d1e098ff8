"""SlimInfer (arXiv:2508.06447): long prompts through an LLM with a shorter sequence in its deep layers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .baselines import GemFilter as GemFilter
    from .baselines import LazyLLM as LazyLLM
    from .cache import SlimCache as SlimCache
    from .method import SlimInfer as SlimInfer

_MODULE_OF = {"SlimCache": "cache", "SlimInfer": "method", "GemFilter": "baselines", "LazyLLM": "baselines"}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
