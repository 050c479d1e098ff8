"""Algorithm A of MoDES: how much the answers change when one layer's experts are taken away."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from fewstep.families.moe import MoeSite
from fewstep.families.vlm import TEXT, VISION, modality, special_ids, vision_ids
from fewstep.fitting import Journal
from jaxtyping import Bool
from torch import Tensor

from . import registry
from .reference import Batch, Loss, Reference, fingerprint
from .rule import Routed
from .skipping import SkipApplied, Skipping

Disabled = Literal["zero", "identity"]
Track = Callable[[Iterable, int], Iterable]


@dataclass(frozen=True)
class Importance:
    """Divergence per scored token when the experts of a layer are taken away, for each layer with experts."""

    text: tuple[float, ...]
    """For text tokens only; all tokens where calibration was not by modality."""
    vision: tuple[float, ...]
    shared: tuple[float, ...]
    """Sum of both: for one importance of all tokens."""

    @staticmethod
    def normalised(alpha: tuple[float, ...]) -> tuple[float, ...]:
        """With sum 1; zeros stay zeros."""
        total = sum(alpha)
        return tuple(value / total for value in alpha) if total else alpha


@dataclass(frozen=True, kw_only=True)
class Without(Skipping):
    """The model without the routed experts of one layer, for tokens of one modality."""

    name: ClassVar[str] = "without"

    layer: int
    """Which layer."""
    kind: int | None
    """Which modality; None for all tokens, special ones too."""
    disabled: Disabled = "zero"
    """What the layer adds instead: nothing, or (as the authors' code) its own normalised input."""

    @property
    def protects(self) -> bool:  # type: ignore[override]
        """All tokens means all."""
        return self.kind is not None

    def policy(self, sites: list[MoeSite]) -> Without:
        return self

    def keep(self, site: MoeSite, routed: Routed) -> Bool[Tensor, "t k"]:
        """Everything but this layer's pairs of these tokens."""
        gone = torch.full_like(routed.kind, site.layer == self.layer, dtype=torch.bool)
        if self.kind is not None:
            gone &= routed.kind == self.kind
        return ~gone[:, None].expand(routed.index.shape)

    def apply(self, model: Any) -> SkipApplied:
        applied = super().apply(model)
        if self.disabled == "identity":
            site = next(site for site in registry.sites(model) if site.layer == self.layer)
            seen: list[Tensor] = []

            def note(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
                seen[:] = [modality({**kwargs, "input_ids": args[0]} if args else kwargs, special, vision)]

            special, vision = special_ids(model), vision_ids(model)
            for hook in (
                model.register_forward_pre_hook(note, with_kwargs=True),
                site.block.register_forward_hook(partial(self._instead, seen)),
            ):
                applied.callback(hook.remove)
        return applied

    def _instead(self, seen: list[Tensor], block: Any, args: tuple, out: Any) -> Any:
        made, rest = (out[0], out[1:]) if isinstance(out, tuple) else (out, ())
        chosen = torch.ones_like(seen[0], dtype=torch.bool) if self.kind is None else seen[0] == self.kind
        made = torch.where(chosen[..., None], args[0], made)
        return (made, *rest) if rest else made


def calibrate(
    model: Any,
    batches: Iterable[Batch],
    *,
    per_modality: bool = True,
    disabled: Disabled = "zero",
    loss: Loss = "kl",
    temperature: float = 1.0,
    journal: Journal | None = None,
    track: Track = lambda steps, total: steps,
    reference: Reference | None = None,
) -> Importance:
    """Measure the importance of every layer (section 3.2).

    Each batch is run once for every layer and modality. What was measured is kept in `journal`, so that a calibration
    that was killed goes on where it stopped.

    Args:
        model: a transformers model with routed experts.
        batches: see `fewstep_modes.reference.Batch`.
        per_modality: text and vision apart, as the authors' code; otherwise all tokens of a layer, as the paper.
        disabled: see `Without`.
        loss: KL to the unchanged model, or mean squared difference of logits.
        temperature: of both sides of the KL.
        journal: for resuming.
        track: shows progress.
        reference: the unchanged model on the same batches, where it is known already.
    """
    reference = reference or Reference(model, batches, loss=loss, temperature=temperature)
    journal = journal or Journal(None, fingerprint(reference.batches))
    layers = [site.layer for site in registry.sites(model)]
    kinds: tuple[int | None, ...] = ((TEXT, VISION) if vision_ids(model) else (TEXT,)) if per_modality else (None,)
    jobs = [(layer, kind, n) for layer in layers for kind in kinds for n in range(len(reference.batches))]
    total = dict.fromkeys(((layer, kind) for layer in layers for kind in kinds), 0.0)
    for layer, kind, number in track(jobs, len(jobs)):
        key = ["alpha", disabled, layer, kind, number]
        if (found := journal.get(key)) is None:
            method = Without(layer=layer, kind=kind, disabled=disabled)
            found = journal.put(key, max(0.0, reference.divergence(method, number)))
        total[layer, kind] += found
    mean = {key: value / reference.tokens for key, value in total.items()}
    if not per_modality:
        shared = tuple(mean[layer, None] for layer in layers)
        return Importance(shared, shared, shared)
    text = tuple(mean[layer, TEXT] for layer in layers)
    vision = tuple(mean.get((layer, VISION), 0.0) for layer in layers)
    return Importance(text, vision, tuple(a + b for a, b in zip(text, vision, strict=True)))
