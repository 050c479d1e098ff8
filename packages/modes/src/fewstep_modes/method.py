"""`MoDES`, and what is left of it in ablations: one threshold, without layer importance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

from fewstep.families.moe import MoeSite
from fewstep.families.vlm import NAMES, TEXT, VISION
from jaxtyping import Bool
from torch import Tensor

from .fitted import UNSHOWN, Fitted
from .rule import Routed, Score, importance, reaches

Factors = Mapping[int, Mapping[int, float]]
"""``a[l][m]``: by layer and modality."""


@dataclass(frozen=True, kw_only=True)
class MoDES(Fitted):
    """Skip the experts whose importance is below a threshold (arXiv:2511.15690).

    ``s_i = a[l][m] pi_i``: layer importance times routing weight. A pair with ``s_i < tau[m]`` is not run, and the
    weights of the others stay as they are.
    """

    name: ClassVar[str] = "modes"
    values: ClassVar[tuple[str, ...]] = ("tau_text", "tau_vision")

    alpha_text: tuple[float, ...] = field(default=(), metadata=UNSHOWN)
    """Importance of each layer's experts to text tokens, with sum 1; empty for equal ones."""
    alpha_vision: tuple[float, ...] = field(default=(), metadata=UNSHOWN)
    """The same to vision tokens."""
    score: Score = "topk_norm"
    """Routing weight normalised over the selected experts (the authors' code), or softmax over all (the paper)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha_text", "alpha_vision"):
            values = getattr(self, name)
            if any(not value >= 0 for value in values):
                raise ValueError(f"{name} must not be negative, found {min(values)}")
            if values and self.layers and len(values) != len(self.layers):
                raise ValueError(f"{name} has {len(values)} values for {len(self.layers)} layers")

    def identity(self) -> Self:
        """Thresholds of 0: nothing is skipped."""
        return self.setting(**dict.fromkeys(self.values, 0.0))

    def policy(self, sites: list[MoeSite]) -> Threshold:
        self.check(sites)
        point = self.point()
        return Threshold(self.factors(sites), {TEXT: point["tau_text"], VISION: point["tau_vision"]}, self.score)

    def factors(self, sites: list[MoeSite]) -> Factors:
        """``a`` for these layers.

        Raises:
            ValueError: there are not as many values as layers.
        """
        equal = (1 / len(sites),) * len(sites)
        text, vision = self.alpha_text or equal, self.alpha_vision or equal
        if not len(text) == len(vision) == len(sites):
            raise ValueError(
                f"{self.name} has importances of {len(text)} layers, this model has {len(sites)}; fit it again"
            )
        return {site.layer: {TEXT: text[i], VISION: vision[i]} for i, site in enumerate(sites)}


@dataclass(frozen=True, kw_only=True)
class DMT(MoDES):
    """Two thresholds on the routing weight, one for each modality, without layer importance (ablation)."""

    name: ClassVar[str] = "dmt"


@dataclass(frozen=True, kw_only=True)
class Single(MoDES):
    """One threshold on the routing weight for all tokens and layers (ablation)."""

    name: ClassVar[str] = "single"
    values: ClassVar[tuple[str, ...]] = ("tau",)

    def policy(self, sites: list[MoeSite]) -> Threshold:
        self.check(sites)
        tau = self.point()["tau"]
        return Threshold(self.factors(sites), dict.fromkeys(NAMES, tau), self.score)


@dataclass(frozen=True, kw_only=True)
class GMLG(Single):
    """One threshold on layer importance times routing weight; one importance for all tokens of a layer (ablation)."""

    name: ClassVar[str] = "gmlg"


class Threshold:
    """The policy of `MoDES`."""

    def __init__(self, factors: Factors, tau: Mapping[int, float], score: Score) -> None:
        self.factors, self.tau, self.score = factors, tau, score

    def scores(self, site: MoeSite, routed: Routed) -> Tensor:
        """``s`` of every pair; a modality without a factor of its own has that of text."""
        return importance(routed.share(self.score), self._known(routed), self.factors[site.layer])

    def keep(self, site: MoeSite, routed: Routed) -> Bool[Tensor, "t k"]:
        """Pairs at or above the threshold."""
        return reaches(self.scores(site, routed), self._known(routed), self.tau)

    def _known(self, routed: Routed) -> Tensor:
        return routed.kind.masked_fill(routed.kind > max(self.tau), TEXT)
