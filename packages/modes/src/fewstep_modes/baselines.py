"""Baselines: other published ways to skip experts, with the hooks, experts and counters of MoDES."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Self

import torch
from fewstep import Method
from fewstep.contract import CalibrationBatch
from fewstep.families import unwrapped
from fewstep.families.moe import MoeSite, run
from fewstep.families.vlm import PADDING, TEXT, VISION
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from . import registry
from .method import UNSHOWN, FittedMethod, check_model
from .rule import RouterOutput, SkipPolicy, by_modality, rank, shares
from .skipping import SEAMS, SkipApplied, skip


@dataclass(frozen=True, kw_only=True)
class ReduceK(FittedMethod):
    """Keep the k' likeliest experts of each token, whatever their weights.

    A k' between two whole numbers keeps one expert more in shallow layers, and there for text before vision.
    """

    name: ClassVar[str] = "reduce-k"
    neutral: ClassVar[Mapping[str, float]] = {"keep": 1e9}

    keep: float | None = None
    """k', instead of the one that was fitted for a target."""

    def policy(self, sites: Sequence[MoeSite]) -> SkipPolicy:
        keep = self.point()["keep"]
        whole, parts = int(keep), [(site.layer, kind) for site in sites for kind in (TEXT, VISION)]
        more = set(parts[: round((keep - whole) * len(parts))])

        def first(site: MoeSite, routed: RouterOutput) -> Bool[Tensor, "t k"]:
            most = {kind: float(whole + ((site.layer, kind) in more)) for kind in (TEXT, VISION)}
            return rank(routed.weight) < by_modality(routed.kind, most, float(whole))[:, None]

        return first


@dataclass(frozen=True, kw_only=True)
class NAEE(FittedMethod):
    """Skip the tail of a token's experts whose summed weight is small beside the whole (Lu et al., arXiv:2402.14800).

    For k > 2 as MoDES compares with it: from the first i >= 2 with ``sum_{u >= i} pi_u < beta`` on. The kept weights
    are scaled up to the sum of all.
    """

    name: ClassVar[str] = "naee"
    neutral: ClassVar[Mapping[str, float]] = {"beta": 0.0}
    renormalise: ClassVar[bool] = True

    beta: float | None = None
    """Instead of the value that was fitted for a target; 0 skips nothing, 1 all but the first."""

    def policy(self, sites: Sequence[MoeSite]) -> SkipPolicy:
        beta = self.point()["beta"]
        return lambda site, routed: without_tail(routed, beta)


def without_tail(routed: RouterOutput, beta: float) -> Bool[Tensor, "t k"]:
    """Keep the first expert of each token, and i where ``sum_{u >= i} pi_u >= beta``."""
    order = routed.weight.argsort(dim=-1, descending=True, stable=True)
    tails = shares(routed).gather(1, order).flip(-1).cumsum(-1).flip(-1)
    kept = tails >= beta
    kept[:, 0] = True
    return torch.empty_like(kept).scatter_(1, order, kept)


@dataclass(frozen=True, kw_only=True)
class MCMoE(FittedMethod):
    """Skip by NAEE's rule with protection of tokens (Huang et al., arXiv:2410.06270).

    By prompt, the most important tokens keep all their experts and the least important lose all. Importance is the L1
    norm of the hidden state: the attention that a token receives, by which the paper multiplies it, is not computed by
    fused attention. Single-token steps keep all.
    """

    name: ClassVar[str] = "mc-moe"
    neutral: ClassVar[Mapping[str, float]] = {"beta": 0.0}
    renormalise: ClassVar[bool] = True

    beta: float | None = None
    """Instead of the value that was fitted for a target; 0 skips no tail, 1 all but the first."""
    protected: float = 0.1
    """Share of a prompt's tokens that keep all their experts."""
    dropped: float = 0.1
    """Share that loses all."""
    prunable: tuple[int, ...] = field(default=(), metadata=UNSHOWN)
    """Layers in which experts are skipped: the least important five in eight; empty for all."""

    def identity(self) -> Self:
        """Return the setting with no tail and no token dropped."""
        return replace(super().identity(), dropped=0.0)

    def policy(self, sites: Sequence[MoeSite]) -> SkipPolicy:
        beta = self.point()["beta"]

        def protected(site: MoeSite, routed: RouterOutput) -> Bool[Tensor, "t k"]:
            if routed.modality.shape[1] == 1 or (self.prunable and site.layer not in self.prunable):
                return torch.ones_like(routed.index, dtype=torch.bool)
            place = places(routed.hidden, routed.modality).view(-1, 1)
            return (without_tail(routed, beta) | (place >= 1 - self.protected)) & (place >= self.dropped)

        return protected


def places(hidden: Float[Tensor, "t h"], modality: Int8[Tensor, "b s"]) -> Float[Tensor, "b s"]:
    """Rank tokens within their prompt by the L1 norm of their hidden state, from 0 to below 1; padding is 0."""
    norm = hidden.float().abs().sum(-1).view(modality.shape)
    present = modality != PADDING
    order = norm.masked_fill(~present, -1.0).argsort(dim=1, stable=True).argsort(dim=1)
    absent = (~present).sum(1, keepdim=True)
    return (order - absent).clamp(min=0) / present.sum(1, keepdim=True).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class REAP(Method):
    """Remove the experts of smallest mean router weight times output norm (Lasby et al., arXiv:2510.13999).

    Static: their pairs are skipped for every token, special ones too, and the router is left as it is.
    """

    name: ClassVar[str] = "reap"
    seams: ClassVar[frozenset[str]] = SEAMS

    special: tuple[int, ...] | None = None
    """Token ids that are counted as special; None takes those of the configuration."""
    pack: bool = False
    """Keep a second copy of the experts' weights in oneDNN's own layout: faster on a CPU, twice the memory."""
    removed: tuple[tuple[int, ...], ...] = ()
    """Experts that are removed, by layer with experts."""
    experts: int = 0
    """Routed experts of the model that this was fitted to."""
    top_k: int = 0
    """Experts of each token in that model."""
    layers: tuple[int, ...] = ()
    """Its layers with experts."""

    def identity(self) -> Self:
        """Return the setting that removes nothing."""
        return type(self)(special=self.special)

    def apply(self, model: Any) -> SkipApplied:
        """Skip the pairs of the removed experts; the result has `counts`.

        Raises:
            UnsupportedModelError: the model has no routed experts.
            SeamConflictError: experts of the model are skipped already.
            ValueError: the experts were chosen for another model.
        """
        model = unwrapped(model)
        sites = registry.sites(model)
        if self.removed:
            check_model(sites, self.experts, self.top_k, self.layers, self.name)
        removed = dict(zip((site.layer for site in sites), self.removed or ((),) * len(sites), strict=True))

        def others(site: MoeSite, routed: RouterOutput) -> Bool[Tensor, "t k"]:
            return ~torch.isin(routed.index, routed.index.new_tensor(removed[site.layer]))

        return skip(model, sites, others, self, special=self.special, pack=self.pack, protect_special=False)


@torch.no_grad()
def saliency(model: Any, batches: Iterable[CalibrationBatch]) -> dict[int, Float[Tensor, " e"]]:
    """Measure the saliency of each expert, by layer: the criterion of REAP (2510.13999, equation 9).

        S_j = mean over the tokens x that are routed to j of  g_j(x) ||f_j(x)||_2

    `g` is the routing weight, `f` the expert's output. An expert without tokens has 0.

    Raises:
        UnsupportedModelError: the model has no routed experts.
    """
    sites = registry.sites(model)
    totals = {site.layer: torch.zeros(site.count, 2) for site in sites}
    hooks = [site.experts.register_forward_pre_hook(partial(_add_saliency, site, totals[site.layer])) for site in sites]
    try:
        for batch in batches:
            model(**{name: value.to(model.device) for name, value in batch["inputs"].items()}, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: total[:, 0] / total[:, 1].clamp(min=1) for layer, total in totals.items()}


def _add_saliency(site: MoeSite, total: Float[Tensor, "e 2"], experts: Any, args: tuple) -> None:
    hidden, index, weight = args
    for expert in range(site.count):
        token, place = torch.where(index == expert)
        if len(token):
            ones = torch.ones(len(token), 1, dtype=weight.dtype, device=weight.device)
            only = torch.full((len(token), 1), expert, device=index.device)
            output = run(experts, hidden[token], only, ones)
            total[expert, 0] += (weight[token, place].float() * output.float().norm(dim=-1)).sum().cpu()
            total[expert, 1] += len(token)


@dataclass(frozen=True, kw_only=True)
class Registered(Method):
    """Skip by a policy that another package registers through `fewstep_modes.hookspecs`."""

    name: ClassVar[str] = "skip-policy"
    seams: ClassVar[frozenset[str]] = SEAMS

    special: tuple[int, ...] | None = None
    """Token ids that keep all their experts; None takes begin, end, padding and picture marks of the configuration."""
    pack: bool = False
    """Keep a second copy of the experts' weights in oneDNN's own layout: faster on a CPU, twice the memory."""
    policy_name: str = ""
    """Name under which the policy is registered."""

    def apply(self, model: Any) -> SkipApplied:
        """Skip the pairs that the policy does not keep; the result has `counts`.

        Raises:
            UnsupportedModelError: the model has no routed experts.
            SeamConflictError: experts of the model are skipped already.
            UnknownNameError: no package has a policy of that name.
        """
        policy = registry.policy(self.policy_name)
        return skip(model, registry.sites(model), policy, self, special=self.special, pack=self.pack)
