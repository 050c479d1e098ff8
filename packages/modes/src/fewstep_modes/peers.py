"""Other published ways to skip experts, in the same harness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from fewstep.families.moe import MoeSite
from fewstep.families.vlm import PADDING, TEXT, VISION
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from . import registry
from .fitted import UNSHOWN, Fitted, same_model
from .rule import Policy, Routed, by_modality, rank
from .skipping import Skipping


@dataclass(frozen=True, kw_only=True)
class ReduceK(Fitted):
    """Keep the k' likeliest experts of each token, whatever their weights.

    A k' between two whole numbers keeps one expert more in shallow layers, and there for text before vision.
    """

    name: ClassVar[str] = "reduce-k"
    values: ClassVar[tuple[str, ...]] = ("keep",)

    keep: float | None = None
    """k', instead of what was fitted for a target."""

    def identity(self) -> Self:
        """All experts of any model."""
        return replace(self, keep=1e9)

    def policy(self, sites: list[MoeSite]) -> Policy:
        self.check(sites)
        return _FirstK(sites, self.point()["keep"] if self.keep is None else self.keep)


class _FirstK:
    def __init__(self, sites: list[MoeSite], keep: float) -> None:
        self.whole = int(keep)
        parts = [(site.layer, kind) for site in sites for kind in (TEXT, VISION)]
        self.more = set(parts[: round((keep - self.whole) * len(parts))])

    def keep(self, site: MoeSite, routed: Routed) -> Bool[Tensor, "t k"]:
        most = {kind: float(self.whole + ((site.layer, kind) in self.more)) for kind in (TEXT, VISION)}
        return rank(routed.weight) < by_modality(routed.kind, most, float(self.whole))[:, None]


@dataclass(frozen=True, kw_only=True)
class NAEE(Fitted):
    """Drop the tail of a token's experts whose summed weight is small beside the whole (Lu et al., arXiv:2402.14800).

    For k > 2 as MoDES compares with it: from the first i >= 2 with ``sum_{u >= i} pi_u < beta`` on. What is kept is
    scaled up to the sum of all.
    """

    name: ClassVar[str] = "naee"
    values: ClassVar[tuple[str, ...]] = ("beta",)
    renormalise: ClassVar[bool] = True

    beta: float | None = None
    """Instead of what was fitted for a target; 0 drops nothing, 1 all but the first."""

    def identity(self) -> Self:
        """A tail of nothing."""
        return replace(self, beta=0.0)

    def policy(self, sites: list[MoeSite]) -> Policy:
        self.check(sites)
        return _Tail(self.point()["beta"] if self.beta is None else self.beta)


class _Tail:
    def __init__(self, beta: float) -> None:
        self.beta = beta

    def keep(self, site: MoeSite, routed: Routed) -> Bool[Tensor, "t k"]:
        order = routed.weight.argsort(dim=-1, descending=True, stable=True)
        sorted_shares = routed.share().gather(1, order)
        tails = sorted_shares.flip(-1).cumsum(-1).flip(-1)
        kept = tails >= self.beta
        kept[:, 0] = True
        return torch.empty_like(kept).scatter_(1, order, kept)


@dataclass(frozen=True, kw_only=True)
class MCMoE(NAEE):
    """NAEE's rule with protection of tokens (Huang et al., arXiv:2410.06270).

    By prompt, the most important tokens keep all their experts and the least important lose all. Importance is the L1
    norm of the hidden state: the attention that a token receives, by which the paper multiplies it, is not computed by
    fused attention. Single-token steps keep all.
    """

    name: ClassVar[str] = "mc-moe"

    protected: float = 0.1
    """Share of a prompt's tokens that keep all their experts."""
    dropped: float = 0.1
    """Share that loses all."""
    prunable: tuple[int, ...] = field(default=(), metadata=UNSHOWN)
    """Layers in which experts are skipped: the least important five in eight; empty for all."""

    def identity(self) -> Self:
        """No tail, no token dropped."""
        return replace(self, beta=0.0, dropped=0.0)

    def policy(self, sites: list[MoeSite]) -> Policy:
        self.check(sites)
        beta = self.point()["beta"] if self.beta is None else self.beta
        return _Protected(_Tail(beta), self.protected, self.dropped, self.prunable)


class _Protected:
    def __init__(self, tail: _Tail, protected: float, dropped: float, layers: Sequence[int]) -> None:
        self.tail, self.protected, self.dropped, self.layers = tail, protected, dropped, layers

    def keep(self, site: MoeSite, routed: Routed) -> Bool[Tensor, "t k"]:
        if routed.modality.shape[1] == 1 or (self.layers and site.layer not in self.layers):
            return torch.ones_like(routed.index, dtype=torch.bool)
        place = places(routed.hidden, routed.modality).view(-1, 1)
        keep = self.tail.keep(site, routed) | (place >= 1 - self.protected)
        return keep & (place >= self.dropped)


def places(hidden: Float[Tensor, "t h"], modality: Int8[Tensor, "b s"]) -> Float[Tensor, "b s"]:
    """Where each token stands in its prompt by the L1 norm of its hidden state, from 0 to below 1; padding first."""
    norm = hidden.float().abs().sum(-1).view(modality.shape)
    there = modality != PADDING
    order = norm.masked_fill(~there, -1.0).argsort(dim=1, stable=True).argsort(dim=1)
    absent = (~there).sum(1, keepdim=True)
    return (order - absent).clamp(min=0) / there.sum(1, keepdim=True).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class REAP(Skipping):
    """Remove the experts of smallest mean router weight times output norm (Lasby et al., arXiv:2510.13999).

    Static: their pairs are skipped for every token, and the router is left as it is.
    """

    name: ClassVar[str] = "reap"
    protects: ClassVar[bool] = False

    removed: tuple[tuple[int, ...], ...] = ()
    """Experts that are removed, by layer with experts."""
    experts: int = 0
    """Routed experts of the model that this was fitted to."""
    top_k: int = 0
    """Experts of each token in that model."""
    layers: tuple[int, ...] = ()
    """Its layers with experts."""

    def identity(self) -> Self:
        """Nothing removed."""
        return type(self)(special=self.special)

    def policy(self, sites: list[MoeSite]) -> Policy:
        if self.removed:
            same_model(sites, self.experts, self.top_k, self.layers, self.name)
        gone = self.removed or ((),) * len(sites)
        return _Removed({site.layer: gone[i] for i, site in enumerate(sites)})


class _Removed:
    def __init__(self, removed: dict[int, tuple[int, ...]]) -> None:
        self.removed = removed

    def keep(self, site: MoeSite, routed: Routed) -> Bool[Tensor, "t k"]:
        gone = torch.tensor(self.removed[site.layer], dtype=routed.index.dtype, device=routed.index.device)
        return ~torch.isin(routed.index, gone)


@dataclass(frozen=True, kw_only=True)
class Registered(Skipping):
    """A policy that another package registers through `fewstep_modes.hookspecs`."""

    name: ClassVar[str] = "skip-policy"

    policy_name: str = ""
    """Which one."""

    def policy(self, sites: list[MoeSite]) -> Policy:
        return registry.policy(self.policy_name)
