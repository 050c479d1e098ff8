"""`Case`: a method, a tiny real model and a call of it, for conformance suites."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..method import Method


@dataclass(frozen=True, kw_only=True)
class Case:
    """A method at a setting that changes the output, a tiny real model, and a call of it."""

    method: Method
    model: Any
    """An ``nn.Module`` or a ``DiffusionPipeline``."""
    call: Callable[[Any], Tensor]
    """Runs the model and returns its output; must be deterministic for a given model."""
    others: tuple[Callable[[Any], Tensor], ...] = ()
    """Further calls with other inputs and options, for threads: other lengths, text beside pictures, ..."""
    trained: Callable[[Any], Tensor] | None = None
    """A call that records gradients; None where no one trains through the method."""
    compiled: Callable[[Any], Tensor] | None = None
    """Call of a compiled model, where it differs from `call`."""


def modules(model: Any) -> dict[str, nn.Module]:
    """Return the model itself, or the networks of a pipeline, by prefix."""
    if isinstance(model, nn.Module):
        return {"": model}
    return {f"{name}.": part for name, part in model.components.items() if isinstance(part, nn.Module)}
