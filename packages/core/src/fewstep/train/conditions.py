"""Conditions of a network: prompt embeddings, or a (named) tuple of tensors for networks that take several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def each(function: Callable[..., Any], *conditions: Any) -> Any:
    """Apply `function` to the tensors of conditions of one kind; what is no tensor stays as the first has it."""
    first = conditions[0]
    if isinstance(first, Tensor):
        return function(*conditions)
    if isinstance(first, tuple):
        parts = (each(function, *values) for values in zip(*conditions, strict=True))
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return first


def moved(condition: Any, device: torch.device) -> Any:
    """The condition on `device`."""
    return each(lambda tensor: tensor.to(device), condition)


def cast(condition: Any, dtype: torch.dtype) -> Any:
    """The condition with its floating-point tensors in `dtype`; labels stay whole numbers."""
    return each(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, condition)


def paired(cond: Any, uncond: Any) -> Any:
    """Both in one batch ``[2 B, ...]``; `uncond` may have a batch of one."""
    return each(lambda a, b: torch.cat([a, b.expand_as(a)]), cond, uncond)


def first_tensor(condition: Any) -> Tensor:
    """The first tensor, whose first dimension is the batch."""
    return condition if isinstance(condition, Tensor) else first_tensor(condition[0])
