"""`Fitted`: methods whose settings were searched for one model, at one or several wanted skip ratios."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from fewstep.families.moe import MoeSite

from .skipping import Skipping

UNSHOWN = {"row": False}
"""Metadata of fields that rows leave out: the row's `calibration` says which fit they came from."""


def same_model(sites: list[MoeSite], experts: int, top_k: int, layers: tuple[int, ...], name: str) -> None:
    """Refuse a model that a method was not made for.

    Raises:
        ValueError: layers, experts or experts per token differ; the message names both.
    """
    here = (max(site.count for site in sites), max(site.top_k for site in sites), tuple(site.layer for site in sites))
    if here != (experts, top_k, layers):
        raise ValueError(
            f"this {name} was fitted to a model with {experts} experts, {top_k} of them for each token, in layers "
            f"{list(layers)}; this one has {here[0]}, {here[1]} and {list(here[2])}: fit it again"
        )


@dataclass(frozen=True, kw_only=True)
class Fitted(Skipping):
    """A method whose settings depend on the model and on the wanted share of skipped pairs."""

    values: ClassVar[tuple[str, ...]] = ()
    """What a point holds beside its target: ``tau_text``, ``tau_vision``, ..."""

    target: float = 0.5
    """Wanted share of all pairs of token and expert that is skipped; one of those that were searched for."""
    points: tuple[Mapping[str, float], ...] = field(default=(), metadata=UNSHOWN)
    """By target: the settings that were found, and what they gave on the calibration data."""
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
            if not isinstance(point, Mapping) or {"target", *self.values} - set(point):
                raise ValueError(f"a point of {self.name} needs target, {', '.join(self.values)}; found {point}")

    def point(self) -> Mapping[str, float]:
        """The settings for `target`.

        Raises:
            ValueError: nothing was fitted for this target.
        """
        for point in self.points:
            if abs(point["target"] - self.target) < 1e-9:
                return point
        known = ", ".join(f"{point['target']:g}" for point in self.points) or "none, it is not fitted"
        raise ValueError(
            f"{self.name} has no settings for target {self.target:g}; it has: {known}. Make them: fewstep fit "
            f"{self.name} --model ... --targets {self.target:g} --out FOLDER"
        )

    def setting(self, **values: float) -> Self:
        """The same method with just these values in force."""
        return replace(self, target=0.0, points=({"target": 0.0, **values},))

    def check(self, sites: list[MoeSite]) -> None:
        """See `same_model`; a method that is not fitted to a model fits every one."""
        if self.experts:
            same_model(sites, self.experts, self.top_k, self.layers, self.name)


def facts(sites: list[MoeSite], model: str) -> dict[str, Any]:
    """The fields of `Fitted` that say which model it is for."""
    return {
        "experts": max(site.count for site in sites),
        "top_k": max(site.top_k for site in sites),
        "layers": tuple(site.layer for site in sites),
        "model": model,
    }
