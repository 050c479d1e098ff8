"""The cost of `MoDES` for ``fewstep plan``: prefill and decoding with a share of the experts' work left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.errors import UnsupportedModelError
from fewstep.families.moe_cost import MoeSizes, meta_model
from fewstep.families.moe_phases import cost
from fewstep.roofline import Plan, Workload

from . import registry
from .method import MoDES

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


def plan(method: MoDES, parts: Mapping[str, Any], work: Workload) -> Plan:
    """Prefill and decoding of the language model, with all pairs and with ``1 - target`` of them.

    Raises:
        UnsupportedModelError: no routed experts.
    """
    config = parts.get("model")
    text = config.get_text_config() if hasattr(config, "get_text_config") else None
    if text is None or not any(getattr(text, name, None) for name in COUNTS):
        raise UnsupportedModelError("mixtures of experts are supported, and this model has no routed experts")
    model = meta_model(config)
    sites = registry.sites(model)
    sizes = MoeSizes.of(model, sites)
    return Plan(before=cost(sizes, sites, text, work, 0.0), after=cost(sizes, sites, text, work, method.target))
