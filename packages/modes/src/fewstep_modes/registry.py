"""Adapters, modalities and policies of other packages, added through `fewstep_modes.hookspecs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fewstep import plugins
from fewstep.cards import import_target
from fewstep.errors import UnknownNameError
from fewstep.families import moe
from fewstep.families.moe import MoeSite

from .rule import SkipPolicy


def _targets(hook: str) -> dict[str, str]:
    listed = getattr(plugins.installed().manager.hook, hook)()
    return {name: target for one in listed for name, target in one.items()}


def sites(model: Any) -> list[MoeSite]:
    """List the layers with routed experts, by an adapter of another package where one names the model's class.

    Raises:
        UnsupportedModelError: there are none.
    """
    adapter = _targets("fewstep_moe_adapters").get(type(model).__name__)
    return import_target(adapter)(model) if adapter else moe.sites(model)


def modality_of(model: Any) -> Callable[..., Any] | None:
    """Return the function of another package that classifies tokens of this class of models, or None."""
    target = _targets("fewstep_modality").get(type(model).__name__)
    return import_target(target) if target else None


def policy(name: str) -> SkipPolicy:
    """Make a new policy of that name.

    Raises:
        UnknownNameError: no package has one.
    """
    known = _targets("fewstep_skip_policies")
    if name not in known:
        raise UnknownNameError(f"no skip policy is called {name!r}; installed: {', '.join(sorted(known)) or 'none'}")
    return import_target(known[name])().keep
