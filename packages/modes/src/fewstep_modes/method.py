"""`MoDES` and its ablations, the base of all methods that are fitted to a model, and the gain they allow."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from fewstep import Method
from fewstep.families import unwrapped
from fewstep.families.moe import MoeSite
from fewstep.families.moe_cost import MoeSizes, describe_experts, meta_model
from fewstep.families.vlm import NAMES, TEXT, VISION

from . import registry
from .rule import RoutingScore, SkipPolicy, Thresholds
from .skipping import SEAMS, SkipApplied, skip

UNSHOWN = {"row": False}
"""Metadata of fields that rows leave out: the row's `calibration` names the fit that they came from."""
RATIOS, PROMPT = (0.5, 0.75, 0.88), 2048
"""Skip ratios and tokens of the prompt for which `describe` predicts gains."""


@dataclass(frozen=True, kw_only=True)
class FittedMethod(Method):
    """A method whose settings were searched for one model, at one or several skip ratios."""

    seams: ClassVar[frozenset[str]] = SEAMS
    neutral: ClassVar[Mapping[str, float]] = {}
    """Settings of a point beside its target, with the values at which nothing is skipped."""
    renormalise: ClassVar[bool] = False
    """Scale the kept weights of a token up to the sum of all."""

    special: tuple[int, ...] | None = None
    """Token ids that keep all their experts; `fit` writes the special ones of tokenizer and configuration here.
    None takes begin, end, padding and picture marks of the configuration."""
    pack: bool = False
    """Keep a second copy of the experts' weights in oneDNN's own layout: faster on a CPU, twice the memory."""
    target: float = 0.5
    """Wanted share of all pairs of token and expert that is skipped; one of those that were searched for."""
    points: tuple[Mapping[str, float], ...] = field(default=(), metadata=UNSHOWN)
    """By target: the settings, and divergence and skip ratios on the calibration data."""
    experts: int = field(default=0, metadata=UNSHOWN)
    """Routed experts of the model that this was fitted to."""
    top_k: int = field(default=0, metadata=UNSHOWN)
    """Experts of each token in that model."""
    layers: tuple[int, ...] = field(default=(), metadata=UNSHOWN)
    """Its layers with experts."""
    model: str = field(default="", metadata=UNSHOWN)
    """Its name or folder, as it was loaded."""
    calibration: str = ""
    """Data, number of samples and seed of the fit."""

    def __post_init__(self) -> None:
        if not 0 <= self.target <= 1:
            raise ValueError(f"target must be in [0, 1], found {self.target}")
        for point in self.points:
            if not isinstance(point, Mapping) or {"target", *self.neutral} - set(point):
                raise ValueError(f"a point of {self.name} needs target, {', '.join(self.neutral)}; found {point}")

    @abstractmethod
    def policy(self, sites: Sequence[MoeSite]) -> SkipPolicy:
        """Return the policy for a model with these layers.

        Raises:
            ValueError: nothing was fitted for `target`.
        """

    def apply(self, model: Any) -> SkipApplied:
        """Skip experts of `model`; the result has `counts`: pairs skipped and in all, by layer and modality.

        Raises:
            UnsupportedModelError: the model has no routed experts.
            SeamConflictError: experts of the model are skipped already.
            ValueError: this method was made for another model, or is not fitted yet.
        """
        model = unwrapped(model)
        sites = registry.sites(model)
        if self.experts:
            check_model(sites, self.experts, self.top_k, self.layers, self.name)
        options = {"special": self.special, "pack": self.pack, "renormalise": self.renormalise}
        return skip(model, sites, self.policy(sites), self, **options)

    def identity(self) -> Self:
        """Return the setting at which nothing is skipped."""
        return self.at(**self.neutral)

    def at(self, **settings: float) -> Self:
        """Return the same method with just these settings in force."""
        direct = {name: None for name in settings if hasattr(self, name)}  # given by hand, they would come first
        return replace(self, target=0.0, points=({"target": 0.0, **settings},), **direct)

    def point(self) -> Mapping[str, float]:
        """Return the settings in force: those given by hand, and those for `target`.

        Raises:
            ValueError: nothing was fitted for this target.
        """
        given = {name: value for name in self.neutral if (value := getattr(self, name, None)) is not None}
        if len(given) == len(self.neutral):
            return given
        for point in self.points:
            if abs(point["target"] - self.target) < 1e-9:
                return point
        known = ", ".join(f"{point['target']:g}" for point in self.points) or "none, it is not fitted"
        raise ValueError(
            f"{self.name} has no settings for target {self.target:g}; it has: {known}. Make them: fewstep fit "
            f"{self.name} --model ... --targets {self.target:g} --out FOLDER"
        )

    def key(self) -> dict[str, Any]:
        """Return everything that decides which pairs are skipped, as JSON has it: a key for stored measurements."""
        record = {"pack", "target", "points", "experts", "top_k", "layers", "model", "calibration"}
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in record}
        return {"method": self.name, **fields, **{name: self.point()[name] for name in self.neutral}}


@dataclass(frozen=True, kw_only=True)
class LayerFactors:
    """Fields of a threshold method: importance of each layer's experts, and the routing score that it scales."""

    alpha_text: tuple[float, ...] = field(default=(), metadata=UNSHOWN)
    """Importance of each layer's experts to text tokens, with sum 1; empty for equal ones."""
    alpha_vision: tuple[float, ...] = field(default=(), metadata=UNSHOWN)
    """The same to vision tokens."""
    score: RoutingScore = "topk_norm"
    """Routing weight normalised over the selected experts (the authors' code), or softmax over all (the paper)."""

    def __post_init__(self) -> None:
        for name in ("alpha_text", "alpha_vision"):
            if any(not value >= 0 for value in getattr(self, name)):
                raise ValueError(f"{name} must not be negative, found {min(getattr(self, name))}")
        super().__post_init__()  # type: ignore[misc]

    def policy(self, sites: Sequence[MoeSite]) -> Thresholds:
        """Return the policy for a model with these layers.

        Raises:
            ValueError: nothing was fitted for `target`, or there are not as many importances as layers.
        """
        point = self.point()  # type: ignore[attr-defined]
        tau = {kind: point.get(f"tau_{name}", point.get("tau")) for kind, name in NAMES.items()}
        equal = (1 / len(sites),) * len(sites)
        text, vision = self.alpha_text or equal, self.alpha_vision or equal
        if not len(text) == len(vision) == len(sites):
            raise ValueError(
                f"the method has importances of {len(text)} and {len(vision)} layers, this model has {len(sites)}; "
                "fit it again"
            )
        factors = {site.layer: {TEXT: text[i], VISION: vision[i]} for i, site in enumerate(sites)}
        return Thresholds(factors, tau, self.score)


@dataclass(frozen=True, kw_only=True)
class MoDES(LayerFactors, FittedMethod):
    """Skip the experts whose importance is below a threshold (arXiv:2511.15690).

    ``s_i = a[l][m] pi_i`` (GMLG, section 3.2): layer importance times routing weight. A pair with ``s_i < tau[m]``
    (DMT, section 3.3) is not run, and the weights of the others stay as they are.
    """

    name: ClassVar[str] = "modes"
    neutral: ClassVar[Mapping[str, float]] = {"tau_text": 0.0, "tau_vision": 0.0}


@dataclass(frozen=True, kw_only=True)
class DMT(LayerFactors, FittedMethod):
    """Skip by two thresholds on the routing weight, one for each modality, without layer importance (ablation)."""

    name: ClassVar[str] = "dmt"
    neutral: ClassVar[Mapping[str, float]] = {"tau_text": 0.0, "tau_vision": 0.0}


@dataclass(frozen=True, kw_only=True)
class Single(LayerFactors, FittedMethod):
    """Skip by one threshold on the routing weight, for all tokens and layers (ablation)."""

    name: ClassVar[str] = "single"
    neutral: ClassVar[Mapping[str, float]] = {"tau": 0.0}


@dataclass(frozen=True, kw_only=True)
class GMLG(LayerFactors, FittedMethod):
    """Skip by one threshold on layer importance times routing weight, one importance for all tokens (ablation)."""

    name: ClassVar[str] = "gmlg"
    neutral: ClassVar[Mapping[str, float]] = {"tau": 0.0}


def check_model(sites: Sequence[MoeSite], experts: int, top_k: int, layers: tuple[int, ...], name: str) -> None:
    """Refuse a model that a method was not made for.

    Raises:
        ValueError: layers, experts or experts per token differ; the message names both.
    """
    here = model_facts(sites)
    if here != {"experts": experts, "top_k": top_k, "layers": layers}:
        raise ValueError(
            f"this {name} was fitted to a model with {experts} experts, {top_k} of them for each token, in layers "
            f"{list(layers)}; this one has {here['experts']}, {here['top_k']} and {list(here['layers'])}: fit it again"
        )


def model_facts(sites: Sequence[MoeSite]) -> dict[str, Any]:
    """Return the fields of a fitted method that tell which models it is for."""
    return {
        "experts": max(site.count for site in sites),
        "top_k": max(site.top_k for site in sites),
        "layers": tuple(site.layer for site in sites),
    }


def describe(config: Any, folder: Path) -> list[tuple[str, str]]:
    """Describe a model's experts, and the speed-up of a prompt that skipping them allows, from its configuration.

    Raises:
        UnsupportedModelError: transformers does not have the architecture, or it has no routed experts.
    """
    model = meta_model(config)
    sites = registry.sites(model)
    share, top = MoeSizes.of(model, sites).routed_share(PROMPT), sites[0].top_k
    gains = ", ".join(f"{1 / (1 - share * ratio):.2f}x at {ratio:.0%}" for ratio in RATIOS)
    kept = ", ".join(f"{1 - k / top:.1%} (k' = {k})" for k in range(1, min(top, 4)))
    return [
        *describe_experts(model, sites),
        (f"routed share of a {PROMPT}-token prompt's operations", f"{share:.1%}"),
        ("prefill gain that this allows", gains),
        ("ratios of reduce-k", kept or "none"),
    ]
