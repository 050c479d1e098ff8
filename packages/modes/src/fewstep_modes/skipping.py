"""`Skipping`: what every method that skips experts shares: hooks on the routers, modalities, counters, undoing."""

from __future__ import annotations

import threading
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from fewstep import Applied, Method, UnsupportedModelError
from fewstep.families.moe import MoeSite, install
from fewstep.families.vlm import NAMES, OTHER, PADDING, modality, special_ids, vision_ids
from jaxtyping import Int
from torch import Tensor

from . import registry
from .rule import Policy, Routed

MOST = 8
"""Modalities that are counted."""


@dataclass(frozen=True, kw_only=True)
class Skipping(Method):
    """Skip experts of a mixture by a policy that sees what each layer's router said."""

    seams: ClassVar[frozenset[str]] = frozenset({"experts"})

    special: tuple[int, ...] | None = None
    """Token ids that keep all their experts; None takes begin, end, padding and picture marks of the configuration."""
    pack: bool = False
    """Keep a second copy of the experts' weights in oneDNN's own layout: faster on a CPU, twice the memory."""

    @abstractmethod
    def policy(self, sites: list[MoeSite]) -> Policy:
        """The policy for a model with these layers.

        Raises:
            ValueError: this method was made for another model, or is not fitted yet.
        """

    renormalise: ClassVar[bool] = False
    """Whether the kept weights of a token are scaled up to the sum of all."""
    protects: ClassVar[bool] = True
    """Whether special tokens keep all their experts."""

    def apply(self, model: Any) -> SkipApplied:
        """Hook the routers of `model`; the result has `counts`: pairs skipped and in all, by layer and modality.

        Raises:
            UnsupportedModelError: the model has no routed experts.
            ValueError: this method was made for another model, or is not fitted yet.
        """
        if not hasattr(model, "config"):
            raise UnsupportedModelError(f"{type(model).__name__} is no transformers model with routed experts")
        sites = registry.sites(model)
        router = _Routing(self, self.policy(sites), model, sites)
        with SkipApplied() as undo:
            undo.occupy(model, self)
            install(undo, model, pack=self.pack)
            for hook in router.hooks(model, sites):
                undo.callback(hook.remove)
            applied = undo.pop_all()
        applied.routing = router
        return applied


class SkipApplied(Applied):
    """An undo stack that knows which pairs were skipped since the method was applied."""

    routing: _Routing

    @property
    def counts(self) -> SkipCounts:
        """Pairs skipped and in all, by layer and modality."""
        return self.routing.counts_so_far()

    def stats(self) -> dict[str, Any]:
        """Share of pairs that was skipped, of everything and by layer and modality."""
        counts = self.counts
        rows = {f"layer {row.pop('layer')}": {k: round(v, 3) for k, v in row.items()} for row in counts.table()}
        return {"pairs skipped": round(counts.ratio, 3), **rows}


class _Routing:
    """The hooks of one `apply`. What they share during a forward pass is kept by thread, not in a module."""

    def __init__(self, method: Skipping, policy: Policy, model: Any, sites: list[MoeSite]) -> None:
        self.method, self.policy = method, policy
        self.special = special_ids(model) if method.special is None else method.special
        self.vision = vision_ids(model)
        self.modality_of = registry.modality_of(model)
        self.passes: dict[int, list[Tensor]] = {}
        self.layers = [site.layer for site in sites]
        device = next(model.parameters()).device
        self.counts = torch.zeros(len(sites), MOST, 2, dtype=torch.int64, device=device)
        self.lock = threading.Lock()

    def hooks(self, model: Any, sites: list[MoeSite]) -> list[Any]:
        made = [
            model.register_forward_pre_hook(self.enter, with_kwargs=True),
            model.register_forward_hook(self.leave, always_call=True),
        ]
        for number, site in enumerate(sites):
            made.append(site.router.register_forward_hook(_Route(self, number, site)))
        return made

    @torch.compiler.disable
    def enter(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        named = {**kwargs, "input_ids": args[0]} if args else kwargs
        if self.modality_of:
            kind = self.modality_of(model, named).to(torch.int8)
        else:
            kind = modality(named, self.special, self.vision)
        self.passes.setdefault(threading.get_ident(), []).append(kind)

    @torch.compiler.disable
    def leave(self, *_: Any) -> None:
        stack = self.passes.get(threading.get_ident())
        if stack:
            stack.pop()

    @torch.compiler.disable
    def route(self, number: int, site: MoeSite, hidden: Tensor, said: tuple) -> tuple:
        """Mark the pairs that the policy skips with the index ``E``."""
        logits, weight, index = said
        stack = self.passes.get(threading.get_ident())
        if not stack or stack[-1].numel() != len(index):
            raise ValueError(
                f"layer {site.layer} was run outside a call of the model; call the model that was applied to"
            )
        hidden = hidden.reshape(len(index), -1)
        routed = Routed(logits.reshape(len(index), -1), weight, index, hidden, stack[-1])
        keep = self.policy.keep(site, routed)
        if self.method.protects:
            keep = keep | (routed.kind == OTHER)[:, None]
        keep = keep & (routed.kind != PADDING)[:, None]
        self._count(number, routed.kind, keep)
        if self.method.renormalise:
            kept = (weight * keep).sum(-1, keepdim=True)
            weight = weight * (weight.sum(-1, keepdim=True) / kept.clamp(min=1e-20)).to(weight.dtype)
        return logits, weight.masked_fill(~keep, 0), index.masked_fill(~keep, site.count)

    def _count(self, number: int, kind: Tensor, keep: Tensor) -> None:
        there = (kind != PADDING).long()
        both = torch.stack([(~keep).sum(-1) * there, keep.shape[1] * there], 1)
        with self.lock:
            self.counts[number].index_add_(0, kind.clamp(min=0).long(), both)

    def counts_so_far(self) -> SkipCounts:
        return SkipCounts(self.layers, self.counts.cpu().clone())


class _Route:
    """The hook of one router. A copy of the model has a copy of it that does nothing."""

    def __init__(self, routing: _Routing, number: int, site: MoeSite) -> None:
        self.routing, self.number, self.site = routing, number, site

    def __call__(self, router: Any, args: tuple, said: tuple) -> tuple:
        return self.routing.route(self.number, self.site, args[0], said)


@dataclass(frozen=True, eq=False)
class SkipCounts:
    """Pairs of token and expert, skipped and in all; padding is not counted."""

    layers: list[int]
    counts: Int[Tensor, "l m 2"]
    """By layer, modality (0 other, 1 text, 2 vision) and {skipped, all}."""

    @property
    def ratio(self) -> float:
        """Share of all pairs that was skipped."""
        return self.share()

    def share(self, *, layer: int | None = None, modality: int | None = None) -> float:
        """Share that was skipped of one layer, one modality, or both; 0 where there are no pairs."""
        some = self.counts if layer is None else self.counts[self.layers.index(layer)][None]
        some = some if modality is None else some[:, modality : modality + 1]
        skipped, whole = some.sum((0, 1)).tolist()
        return skipped / whole if whole else 0.0

    def table(self) -> list[dict[str, Any]]:
        """One dict for each layer: its number and the share that was skipped of each modality."""
        return [
            {"layer": layer, **{name: self.share(layer=layer, modality=kind) for kind, name in NAMES.items()}}
            for layer in self.layers
        ]
