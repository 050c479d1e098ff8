"""NewName: round the weights of a language model to a coarse grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .method import NewName as NewName

__all__ = ["NewName"]


def __getattr__(name: str):
    if name == "NewName":  # lazy, so that `fewstep list` does not import torch
        from .method import NewName

        return NewName
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
