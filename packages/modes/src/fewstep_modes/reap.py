"""What each expert contributes on calibration data: the criterion of REAP."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from fewstep.families.moe import MoeSite, run
from jaxtyping import Float
from torch import Tensor

from . import registry
from .reference import Batch


@torch.no_grad()
def saliency(model: Any, batches: Iterable[Batch]) -> dict[int, Float[Tensor, " e"]]:
    """By layer: mean over the tokens of an expert of router weight times norm of its output (2510.13999, equation 9).

    An expert without tokens has 0.
    """
    sites = registry.sites(model)
    totals = {site.layer: torch.zeros(site.count, 2) for site in sites}
    hooks = [site.experts.register_forward_pre_hook(_note(site, totals[site.layer])) for site in sites]
    try:
        for batch in batches:
            model(**{k: v.to(model.device) for k, v in batch["inputs"].items()}, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: found[:, 0] / found[:, 1].clamp(min=1) for layer, found in totals.items()}


def _note(site: MoeSite, total: Float[Tensor, "e 2"]) -> Any:
    def note(experts: Any, args: tuple) -> None:
        hidden, index, weight = args
        for expert in range(site.count):
            token, place = torch.where(index == expert)
            if len(token):
                ones = torch.ones(len(token), 1, dtype=weight.dtype, device=weight.device)
                only = torch.full((len(token), 1), expert, device=index.device)
                made = run(experts, hidden[token], only, ones)
                total[expert, 0] += (weight[token, place].float() * made.float().norm(dim=-1)).sum().cpu()
                total[expert, 1] += len(token)

    return note
