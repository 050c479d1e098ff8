"""`Card`: name, summary and import target of a method, recipe, loader, task or kernel. Imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pluggy

hookimpl = pluggy.HookimplMarker("fewstep")
"""Marks a function of a ``plugin.py`` as an implementation of one of the hooks in `fewstep.hookspecs`."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Name, summary and import target of a thing, known before anything heavy is imported.

    Targets are strings ``"module:Name"`` that are imported only when the thing is used.
    """

    name: str
    """Short name, as typed on the command line: ``slim-infer``."""
    summary: str
    """One line, without a full stop."""
    target: str
    """``"module:Name"``: a Method or Task class, a function returning a Loaded or Recipe, or a Kernel object."""
    paper: str | None = None
    """arXiv identifier, for example ``2508.06447``; None for things that no paper describes."""
    models: tuple[str, ...] = ()
    """Supported architecture classes (methods), or classes of the model (loaders)."""
    saved: Mapping[str, str] = field(default_factory=dict)
    """Models only: saved methods that come with one, ``"package:folder"`` by the method's name."""
    run: str | None = None
    """Methods only: ``"module:Name"`` of a `fewstep.contract.RunInputs`, the inputs of ``fewstep run``."""
    fit: str | None = None
    """Methods only: ``"module:Name"`` of a `fewstep.contract.Fitting`, the options of ``fewstep fit``."""
    show: str | None = None
    """Methods only: ``"module:name"`` of a `fewstep.contract.Describer`, for ``fewstep show NAME --model FOLDER``."""
    plan: str | None = None
    """Methods only: ``"module:name"`` of a `fewstep.contract.Planner`, for ``fewstep plan``."""
    config: str | None = None
    """Models only: ``"module:name"`` of the configuration, so that it is planned without being loaded: a mapping, a
    folder, or a function that returns a transformers configuration."""
    role: Literal["method", "baseline", "ablation"] = "method"
    """Methods and recipes: `method`, or `baseline`/`ablation`, which tables of methods leave out."""

    def load(self) -> Any:
        """Import the target and return it."""
        return import_target(self.target)


def import_target(target: str) -> Any:
    """Import ``"module:Name"`` and return the object.

    Raises:
        ImportError: the module is missing or has no such name.
    """
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ImportError(f"{module} has no {name!r}, which a card names as its target") from error
