"""Distance of a method's outputs from the unchanged model's, and the importance of each layer's experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from fewstep import Applied
from fewstep.contract import CalibrationBatch
from fewstep.errors import FewstepError
from fewstep.families.moe import MoeSite, install
from fewstep.families.vlm import TEXT, VISION, vision_ids
from fewstep.fitting import Journal
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from . import registry
from .method import MoDES
from .rule import RouterOutput
from .skipping import SkipApplied, SkipCounts, skip

Loss = Literal["kl", "mse"]
"""KL to the unchanged model in nats, or squared difference of logits, mean over the vocabulary."""
Disabled = Literal["zero", "identity"]
"""Output of a layer's routed experts while they are taken away: nothing, or the layer's own normalised input."""
Track = Callable[[Iterable, int], Iterable]
"""Shows progress over so many steps and hands them on."""
NOISE = {"kl": 1e-9, "mse": 1e-12}
"""Distance of a position that rounding alone explains: rows of a product differ in their last bit with their number."""


def kl(dense: Float[Tensor, "n v"], other: Float[Tensor, "n v"]) -> Float[Tensor, " n"]:
    """``KL(dense || other) = sum P0 (ln P0 - ln P)`` in nats, of rows of log-probabilities."""
    return (dense.exp() * (dense - other)).sum(-1)


class Reference:
    """Scored logits of the unchanged model; only those positions are kept, in float32."""

    def __init__(self, model: Any, batches: Iterable[CalibrationBatch], *, loss: Loss = "kl") -> None:
        """Run the unchanged model on the calibration data.

        Args:
            model: a transformers model with routed experts.
            batches: inputs, and ``score_mask`` ``[B, S]`` where a token of an answer is predicted.
            loss: distance between logits.

        Raises:
            FewstepError: nothing is scored.
            UnsupportedModelError: the model has no exchangeable experts.
        """
        self.model, self.batches, self.loss = model, list(batches), loss
        self.masks = [batch["score_mask"].to(model.device) for batch in self.batches]
        self.tokens = sum(int(mask.sum()) for mask in self.masks)
        if not self.tokens:
            raise FewstepError(
                "the calibration data scores no position: score_mask must be true where answers are predicted"
            )
        with Applied() as undo:  # by the same experts as the methods, so that no change is exactly no change
            install(undo, model)
            self.dense = [self._logits(number) for number in range(len(self.batches))]

    @torch.no_grad()
    def _logits(self, number: int) -> Float[Tensor, "n v"]:
        inputs = {name: value.to(self.model.device) for name, value in self.batches[number]["inputs"].items()}
        logits = self.model(**inputs, use_cache=False).logits[self.masks[number]].float()
        return logits.log_softmax(-1) if self.loss == "kl" else logits

    def divergence(self, apply: Callable[[Any], SkipApplied], number: int) -> float:
        """Return the sum over the scored positions of one batch; 0 where only rounding differs."""
        with apply(self.model):
            distance = self._distance(number)
        return distance if distance > NOISE[self.loss] * int(self.masks[number].sum()) else 0.0

    def measure(self, apply: Callable[[Any], SkipApplied]) -> tuple[float, SkipCounts]:
        """Run all data once on the changed model: mean divergence of scored positions, and the counts."""
        applied = apply(self.model)
        with applied:
            total = sum(self._distance(number) for number in range(len(self.batches)))
            return total / self.tokens, applied.counts

    def _distance(self, number: int) -> float:
        logits, dense = self._logits(number), self.dense[number]
        each = kl(dense, logits) if self.loss == "kl" else F.mse_loss(logits, dense, reduction="none").mean(-1)
        return each.double().sum().item()


@dataclass(frozen=True)
class Importance:
    """Divergence per scored token without the experts of a layer, for each layer with experts."""

    text: tuple[float, ...]
    """Without them for text tokens only; for all tokens where calibration was not by modality."""
    vision: tuple[float, ...]
    """Without them for vision tokens only; the same numbers where calibration was not by modality."""

    @property
    def shared(self) -> tuple[float, ...]:
        """Sum of both: for one importance of all tokens."""
        return tuple(a + b for a, b in zip(self.text, self.vision, strict=True))

    @staticmethod
    def normalised(alpha: tuple[float, ...]) -> tuple[float, ...]:
        """Scale to the sum 1: ``a_l = alpha_l / sum_l alpha_l``; zeros stay zeros."""
        total = sum(alpha)
        return tuple(value / total for value in alpha) if total else alpha


def calibrate(
    reference: Reference,
    *,
    per_modality: bool = True,
    disabled: Disabled = "zero",
    special: Sequence[int] | None = None,
    journal: Journal | None = None,
    track: Track = lambda steps, total: steps,
) -> Importance:
    """Measure the importance of every layer (algorithm A of the method card; section 3.2).

        alpha[l][m] = mean over scored positions of  max(0, KL(P0 || P without the experts of l for tokens of m))

    Each batch is run once for every layer and modality. What was measured is kept in `journal`, so that a calibration
    that was killed goes on where it stopped.

    Args:
        reference: the unchanged model on the calibration data.
        per_modality: text and vision apart, as the authors' code; otherwise all tokens of a layer, as the paper.
        disabled: output of the routed experts that are taken away; shared experts run on.
        special: ids of tokens that keep their experts; None takes those of the configuration.
        journal: keeps finished pieces; None keeps them in memory.
        track: shows progress.

    Raises:
        UnsupportedModelError: the model has no routed experts.
    """
    model, journal = reference.model, journal or Journal(None, None)
    sites = registry.sites(model)
    kinds: tuple[int | None, ...] = ((TEXT, VISION) if vision_ids(model) else (TEXT,)) if per_modality else (None,)
    jobs = [(site, kind, n) for site in sites for kind in kinds for n in range(len(reference.batches))]
    total = dict.fromkeys(((site.layer, kind) for site in sites for kind in kinds), 0.0)
    for site, kind, number in track(jobs, len(jobs)):
        key = ["alpha", reference.loss, disabled, site.layer, kind, number]
        key += [] if special is None else [list(special)]
        if (divergence := journal.get(key)) is None:
            apply = without_layer(sites, site, kind, disabled, special)
            divergence = journal.put(key, max(0.0, reference.divergence(apply, number)))
        total[site.layer, kind] += divergence
    mean = {key: value / reference.tokens for key, value in total.items()}
    text, vision = (TEXT, VISION) if per_modality else (None, None)
    return Importance(*(tuple(mean.get((site.layer, kind), 0.0) for site in sites) for kind in (text, vision)))


def without_layer(
    sites: Sequence[MoeSite],
    chosen: MoeSite,
    kind: int | None,
    disabled: Disabled,
    special: Sequence[int] | None = None,
) -> Callable[[Any], SkipApplied]:
    """Return what takes the routed experts of one layer from the tokens of one modality, or from all tokens."""
    taken: list[Tensor] = []

    def policy(site: MoeSite, routed: RouterOutput) -> Bool[Tensor, "t k"]:
        taken[:] = [torch.ones_like(routed.kind, dtype=torch.bool) if kind is None else routed.kind == kind]
        keep = ~taken[0] | (site.layer != chosen.layer)
        return keep[:, None].expand(routed.index.shape)

    def add_input(block: Any, args: tuple, output: Any) -> Any:  # where the output is that of shared experts, or 0
        hidden, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, ())
        hidden = hidden + torch.where(taken[0].view(*args[0].shape[:-1], 1), args[0], 0)
        return (hidden, *rest) if rest else hidden

    def apply(model: Any) -> SkipApplied:
        applied = skip(model, sites, policy, MoDES(), special=special, protect_special=kind is not None)
        if disabled == "identity":
            applied.callback(chosen.block.register_forward_hook(add_input).remove)
        return applied

    return apply
