"""LoRA adapters of PEFT as roles: several on one base, switched without touching what autograd already built."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def add(network: Any, names: Sequence[str], *, rank: int, alpha: float, targets: Sequence[str], seed: int = 0) -> None:
    """Give `network` LoRA adapters of these names in float32, trainable, and freeze everything else.

    Raises:
        ValueError: no linear layer of the network is named by `targets` (said by PEFT).
    """
    from peft import LoraConfig

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
        torch.manual_seed(seed)
        for name in names:
            network.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)), adapter_name=name)
    for name, weight in network.named_parameters():
        trained = any(belongs(name, adapter) for adapter in names)
        weight.requires_grad_(trained)
        if trained:
            weight.data = weight.data.float()


def is_adapter(name: str) -> bool:
    """True for the name of a weight of some adapter."""
    return ".lora_" in name


def belongs(name: str, adapter: str) -> bool:
    """True for the name of a weight of `adapter`."""
    return is_adapter(name) and f".{adapter}." in name


def layers(network: nn.Module) -> list[Any]:
    """Return the layers of `network` that hold adapters."""
    if not getattr(network, "peft_config", None):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def using(layers: Sequence[Any], adapter: str | None) -> Iterator[None]:
    """Run these layers with one adapter, or with none, and leave them as they were."""
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    # not set_adapter: it switches requires_grad off for the other adapters, and with it gradients still to come
    for layer in layers:
        layer._active_adapter, layer._disable_adapters = [adapter], adapter is None
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def checkpointed(network: nn.Module) -> Callable[..., Any]:
    """Make a function that recomputes a block in the backward pass, with the adapter of its forward pass."""
    adapted = layers(network)

    def run(block: nn.Module, *args: Any) -> Any:
        adapter = None
        if adapted and not adapted[0]._disable_adapters:
            adapter = adapted[0]._active_adapter[0]

        def again(*inputs: Any) -> Any:
            with using(adapted, adapter):
                return block(*inputs)

        return torch.utils.checkpoint.checkpoint(again, *args, use_reentrant=False)

    return run
