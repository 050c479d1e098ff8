"""Models of real architecture with random weights, built where they will run: nothing is read or copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .bench import Bench


def language_model(bench: Bench, config: Any, auto: str = "AutoModelForCausalLM") -> Any:
    """A transformers model of this configuration in bf16."""
    import transformers

    config._attn_implementation = "sdpa"
    with torch.device(bench.device):
        made = getattr(transformers, auto).from_config(config, dtype=bench.dtype, trust_remote_code=False)
    return made.eval().requires_grad_(False)


def network(bench: Bench, make: Callable[[], Any]) -> Any:
    """A diffusers model in bf16, but for the parts that it keeps in fp32."""
    with torch.device(bench.device):
        made = make()
    exact = set(getattr(made, "_keep_in_fp32_modules", None) or ())
    for name, weight in made.named_parameters():
        if not exact & set(name.split(".")):
            weight.data = weight.data.to(bench.dtype)
    return made.eval().requires_grad_(False)


def layers_that_fit(bench: Bench, layers: int, each: float, rest: float) -> int:
    """As many of the layers as fit, given GB of one of them and of everything else; whole models where possible."""
    fit = int((bench.free - rest) / each)
    if fit < layers:
        bench.note("layers", f"{max(fit, 1)} of {layers} fit in {bench.free:.0f} GB")
    return max(1, min(layers, fit))
