"""Parameters and multiplications of a decoder, from shapes alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .decoder import WanDecoder


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


def by_stage(decoder: WanDecoder, frames: int, height: int, width: int) -> dict[str, tuple[int, int]]:
    """Parameters and multiply-accumulates of each stage, from shapes alone.

    Args:
        decoder: teacher or student; nothing is computed with its weights.
        frames: of the clip, 1 more than a multiple of the temporal factor.
        height: of the clip in pixels.
        width: of the clip in pixels.

    Returns:
        By name: ``conv_in``, ``mid``, ``up0``, ``up0 resample``, ..., ``head``, ``total``.
    """
    from .decoder import WanDecoder as Twin

    spec = decoder.spec
    with torch.device("meta"):
        twin = Twin(spec)
    size = (1 + (frames - 1) // spec.time, height // spec.space, width // spec.space)
    found = macs(twin, lambda: twin(torch.empty(1, spec.latent, *size, device="meta")))
    weights = {name: weight.numel() for name, weight in twin.named_parameters()}
    table: dict[str, tuple[int, int]] = {}
    for kind, numbers in ((0, weights), (1, found)):
        for name, number in numbers.items():
            for stage in (_stage(name), "total"):
                before = table.get(stage, (0, 0))
                table[stage] = (before[0] + number, before[1]) if kind == 0 else (before[0], before[1] + number)
    return table


def _stage(name: str) -> str:
    parts = name.removeprefix("decoder.").split(".")
    if parts[0] == "up_blocks":
        return f"up{parts[1]}" + (" resample" if parts[2] == "upsamplers" else "")
    return {"post_quant_conv": "conv_in", "conv_in": "conv_in", "mid_block": "mid"}.get(parts[0], "head")
