"""Hooks on a model's routers that skip experts by a policy, and the counts of what was skipped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from fewstep import Applied, Method
from fewstep.families.moe import MoeSite, install
from fewstep.families.vlm import NAMES, OTHER, PADDING, modality, special_ids, vision_ids
from jaxtyping import Int
from torch import Tensor

from . import registry
from .replay import Replays
from .rule import RouterOutput, SkipPolicy

SEAMS = frozenset({"experts"})
"""Seams of every method that skips experts."""
_MODALITIES = 8
"""Numbers of modalities that are counted: 0 to 7."""


def skip(
    model: Any,
    sites: Sequence[MoeSite],
    policy: SkipPolicy,
    owner: Method,
    *,
    special: Sequence[int] | None = None,
    pack: bool = False,
    protect_special: bool = True,
    renormalise: bool = False,
) -> SkipApplied:
    """Skip experts of `model` by `policy` until the result is removed.

    Args:
        model: a transformers model; it may be called by several threads.
        sites: its layers with experts.
        policy: says which pairs of token and expert are run.
        owner: the method in whose name this happens.
        special: ids of special tokens; None takes begin, end, padding and picture marks of the configuration.
        pack: keep a second copy of the experts' weights in oneDNN's own layout.
        protect_special: special tokens keep all their experts.
        renormalise: scale the kept weights of a token up to the sum of all.

    Raises:
        UnsupportedModelError: the model's experts cannot be exchanged.
        SeamConflictError: experts of the model are skipped already.
        ValueError: packing is asked for where it cannot be had.
    """
    with SkipApplied() as undo:
        undo.occupy(model, owner)
        install(undo, model, pack=pack)
        hooks = _Hooks(
            sites=sites,
            policy=policy,
            special=tuple(special_ids(model) if special is None else special),
            vision=vision_ids(model),
            modality_of=registry.modality_of(model),
            protect_special=protect_special,
            renormalise=renormalise,
            counts=torch.zeros(len(sites), _MODALITIES, 2, dtype=torch.int64),
        )
        for handle in hooks.register(model):
            undo.callback(handle.remove)
        applied = undo.pop_all()
    applied.hooks = hooks
    return applied


class SkipApplied(Applied):
    """An undo stack that knows which pairs were skipped since the method was applied."""

    hooks: _Hooks

    @property
    def counts(self) -> SkipCounts:
        """Pairs skipped and in all, by layer and modality."""
        return SkipCounts([site.layer for site in self.hooks.sites], self.hooks.counts.cpu().clone())

    def stats(self) -> dict[str, Any]:
        """Return the share of skipped pairs, of everything and by layer and modality."""
        counts = self.counts
        rows = {f"layer {row.pop('layer')}": {k: round(v, 3) for k, v in row.items()} for row in counts.table()}
        return {"pairs skipped": round(counts.ratio, 3), **rows}


@dataclass(eq=False, kw_only=True)
class _Hooks:
    """Hooks of one application; the modalities of a forward pass are kept by thread."""

    sites: Sequence[MoeSite]
    policy: SkipPolicy
    special: tuple[int, ...]
    vision: tuple[int, ...]
    modality_of: Callable[..., Tensor] | None
    protect_special: bool
    renormalise: bool
    counts: Int[Tensor, "l m 2"]
    passes: dict[int, list[Tensor]] = field(default_factory=dict)
    replays: Replays = field(default_factory=Replays)
    lock: Any = field(default_factory=threading.Lock)

    def register(self, model: Any) -> list[Any]:
        return [
            model.register_forward_pre_hook(self.enter, with_kwargs=True),
            model.register_forward_hook(self.leave, always_call=True),
            *self.replays.register(model, self.sites, self.current),
            *(site.router.register_forward_hook(partial(self.route, n, site)) for n, site in enumerate(self.sites)),
        ]

    def current(self) -> Tensor | None:
        """Return the modalities of the forward pass that this thread is in."""
        stack = self.passes.get(threading.get_ident())
        return stack[-1] if stack else None

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
    def route(self, number: int, site: MoeSite, router: Any, args: tuple, output: tuple) -> tuple:
        """Mark the pairs that the policy skips with the index ``E``."""
        logits, weight, index = output
        kind = first = self.current()
        if first is None:
            kind = self.replays.current()
        if kind is None or kind.numel() != len(index):
            raise ValueError(
                f"layer {site.layer} was run outside a call of the model; call the model that was applied to"
            )
        hidden = args[0].reshape(len(index), -1)
        routed = RouterOutput(logits.reshape(len(index), -1), weight, index, hidden, kind)
        keep = self.policy(site, routed)
        if self.protect_special:
            keep = keep | (routed.kind == OTHER)[:, None]
        keep = keep & (routed.kind != PADDING)[:, None]
        if first is not None:
            self._count(number, routed.kind, keep)
        if self.renormalise:
            kept = (weight * keep).sum(-1, keepdim=True)
            weight = weight * (weight.sum(-1, keepdim=True) / kept.clamp(min=1e-20)).to(weight.dtype)
        return logits, weight.masked_fill(~keep, 0), index.masked_fill(~keep, site.count)

    def _count(self, number: int, kind: Tensor, keep: Tensor) -> None:
        present = (kind != PADDING).long()
        both = torch.stack([(~keep).sum(-1) * present, keep.shape[1] * present], 1)
        with self.lock:
            if self.counts.device != both.device:  # known only here: weights of an offloaded model lie elsewhere
                self.counts = self.counts.to(both.device)
            self.counts[number].index_add_(0, kind.clamp(min=0).long(), both)


@dataclass(frozen=True, eq=False)
class SkipCounts:
    """Numbers of pairs of token and expert, skipped and in all; padding is not counted."""

    layers: list[int]
    counts: Int[Tensor, "l m 2"]
    """By layer, modality (0 other, 1 text, 2 vision) and {skipped, all}."""

    @property
    def ratio(self) -> float:
        """Share of all pairs that was skipped, in [0, 1]."""
        return self.share()

    def share(self, *, layer: int | None = None, modality: int | None = None) -> float:
        """Return the share that was skipped of one layer, one modality, or both; 0 where there are no pairs."""
        some = self.counts if layer is None else self.counts[self.layers.index(layer)][None]
        some = some if modality is None else some[:, modality : modality + 1]
        skipped, every = some.sum((0, 1)).tolist()
        return skipped / every if every else 0.0

    def table(self) -> list[dict[str, Any]]:
        """List, for each layer, its number and the share that was skipped of each modality."""
        return [
            {"layer": layer, **{name: self.share(layer=layer, modality=kind) for kind, name in NAMES.items()}}
            for layer in self.layers
        ]
