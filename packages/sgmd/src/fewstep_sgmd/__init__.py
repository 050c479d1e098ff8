"""SGMD (arXiv:2605.30116): few-step students of Wan video models, trained one to one with their critic."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .method import SGMD as SGMD

__all__ = ["SGMD"]


def __getattr__(name: str):
    if name == "SGMD":  # lazy, so that `fewstep list` does not import torch
        from .method import SGMD

        return SGMD
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
