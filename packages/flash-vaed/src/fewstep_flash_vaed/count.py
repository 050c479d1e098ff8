"""Parameters and multiplications of a decoder, from shapes alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def parameters(module: nn.Module) -> int:
    """How many weights there are."""
    return sum(weight.numel() for weight in module.parameters())


@torch.no_grad()
def macs(module: nn.Module, run: Callable[[], Any]) -> dict[str, int]:
    """Multiply-accumulates of each convolution in `run`, by name, as a direct convolution would need them.

    Args:
        module: whose convolutions are counted; may be on the meta device.
        run: calls it.
    """
    found: dict[str, int] = defaultdict(int)
    handles = []
    for name, part in module.named_modules():
        weight = getattr(part, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim >= 4:
            handles.append(part.register_forward_hook(_counting(found, name, weight[0].numel())))
    handles += [part.register_forward_hook(_upsampled(found, name)) for name, part in _upsamplers(module)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return dict(found)


def _counting(found: dict[str, int], name: str, each: int) -> Callable:
    def add(_module: nn.Module, _args: Any, out: Tensor) -> None:
        found[name] += out.numel() * each

    return add


def _upsamplers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    from .layers import Upsample

    return [(name, part) for name, part in module.named_modules() if isinstance(part, Upsample)]


def _upsampled(found: dict[str, int], name: str) -> Callable:
    """The convolution of our upsampler is not called as a module."""

    def add(module: Any, _args: Any, out: Tensor) -> None:
        found[f"{name}.resample.1"] += out.numel() * module.resample["1"].weight[0].numel()

    return add
