"""What expert skipping could gain in a model, from its configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fewstep.errors import UnsupportedModelError

from . import registry

RATIOS = (0.5, 0.75, 0.88)
LENGTH = 2048
"""Tokens of the prompt for which gains are predicted."""


def describe(config: Any, folder: Path) -> list[tuple[str, str]]:
    """Layers, experts, share of the operations, and the speed-up of a prompt that skipping allows.

    The model is built on the meta device: no weights are read, and none are allocated.

    Raises:
        UnsupportedModelError: transformers does not have the architecture, or it has no routed experts.
    """
    model = _on_meta(config)
    sites = registry.sites(model)
    text = model.get_decoder()
    layers = len(text.layers)
    share = routed_share(text, sites, LENGTH)
    gains = ", ".join(f"{1 / (1 - share * ratio):.2f}x at {ratio:.0%}" for ratio in RATIOS)
    numbers = [str(site.layer) for site in sites]
    which = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else numbers[0]
    top = sites[0].top_k
    kept = ", ".join(f"{1 - k / top:.1%} (k' = {k})" for k in range(1, top) if k <= 3)
    return [
        ("architecture", type(model).__name__),
        ("layers with experts", f"{len(sites)} of {layers} ({which})"),
        ("routed experts", f"{sites[0].count} in each, {top} for each token"),
        ("shared experts", "yes, they always run" if sites[0].shared else "none"),
        ("parameters", f"{sum(p.numel() for p in model.parameters()) / 1e9:.1f} billion"),
        ("in routed experts", f"{sum(_size(site.experts) for site in sites) / 1e9:.1f} billion"),
        (f"routed share of a {LENGTH}-token prompt's operations", f"{share:.1%}"),
        ("prefill gain that this allows", gains),
        ("ratios of reduce-k", kept or "none"),
    ]


def routed_share(text: Any, sites: list[Any], length: int) -> float:
    """Share of the routed experts in the multiply-adds of the text model for one prompt; the head is not counted."""
    routed = sum(_size(site.experts) * site.top_k / site.count for site in sites)
    every = sum(p.numel() for name, p in text.layers.named_parameters() if p.ndim > 1)
    rest = every - sum(_size(site.experts) for site in sites)
    config = text.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = len(text.layers) * config.num_attention_heads * width * length  # QK and PV, half of each is masked
    return routed / (routed + rest + attention)


def _size(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def _on_meta(config: Any) -> Any:
    import transformers

    architecture = (getattr(config, "architectures", None) or [""])[0]
    cls = getattr(transformers, architecture, None) if not isinstance(config, dict) else None
    if cls is None:
        named = config.get("architectures") if isinstance(config, dict) else architecture
        raise UnsupportedModelError(f"transformers {transformers.__version__} has no class {named or 'for this model'}")
    with torch.device("meta"):
        return cls._from_config(config)
