"""Find plug-ins by the entry-point group ``fewstep`` and collect their cards, typed and duplicate-proof."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

import pluggy

from . import hookspecs
from .cards import Card
from .errors import FewstepError, UnknownNameError

GROUP = "fewstep"


@dataclass(frozen=True)
class Broken:
    """A plug-in that failed: its entry-point name, its distribution and what went wrong."""

    name: str
    distribution: str
    error: str


@dataclass
class Plugins:
    """The loaded plug-ins: a pluggy manager, where each came from, and those that failed."""

    manager: pluggy.PluginManager
    distributions: dict[str, str] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)

    def cards(self, hook: str) -> dict[str, Card]:
        """Cards of one hook by name; a plug-in whose hook raises is noted in `broken` and skipped.

        Raises:
            FewstepError: two plug-ins use one name; the message names both distributions.
        """
        cards: dict[str, tuple[Card, str]] = {}
        for impl in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            origin = self.distributions.get(impl.plugin_name, impl.plugin_name)
            for card in self._call(impl.function, impl.plugin_name, origin):
                if card.name in cards:
                    raise FewstepError(
                        f"{cards[card.name][1]} and {origin} both provide {hook.removeprefix('fewstep_')} named "
                        f"{card.name!r}; uninstall one of them, or choose with FEWSTEP_PLUGINS"
                    )
                cards[card.name] = (card, origin)
        return {name: card for name, (card, _) in sorted(cards.items())}

    def _call(self, function: Callable, name: str, origin: str) -> list[Card]:
        try:
            return list(function())
        except Exception as error:  # whatever third-party code raises must not take the others down
            if name not in {b.name for b in self.broken}:
                self.broken.append(Broken(name, origin, f"{type(error).__name__}: {error}"))
            return []


@cache
def installed() -> Plugins:
    """Load every plug-in once; ``FEWSTEP_PLUGINS=sgmd,salt`` restricts which (``core`` is always loaded)."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    plugins = Plugins(manager)
    only = os.environ.get("FEWSTEP_PLUGINS")
    wanted = {"core", *(name.strip() for name in only.split(","))} if only else None
    seen: dict[str, str] = {}
    entries = sorted(entry_points(group=GROUP), key=lambda e: e.name)
    if unknown := (wanted or set()) - {entry.name for entry in entries}:
        known = ", ".join(dict.fromkeys(entry.name for entry in entries))
        raise FewstepError(f"FEWSTEP_PLUGINS names {', '.join(sorted(unknown))}; installed plug-ins: {known}")
    loaded: dict[str, tuple[ModuleType, str]] = {}
    for entry in entries:
        if wanted is not None and entry.name not in wanted:
            continue
        origin = entry.dist.name if entry.dist else entry.value
        if seen.setdefault(entry.name, origin) != origin:
            raise FewstepError(
                f"{seen[entry.name]} and {origin} both register a plug-in named {entry.name!r}; uninstall one of them"
            )
        if entry.name not in loaded and (module := _load(plugins, entry, origin)):
            loaded[entry.name] = module, origin
    for name, (module, origin) in loaded.items():  # when all specifications are known, in whatever order they came
        _register(plugins, module, name, origin)
    return plugins


def _load(plugins: Plugins, entry: EntryPoint, origin: str) -> ModuleType | None:
    """Import a plug-in, and take over the hook specifications that it has as ``hookspecs``."""
    try:
        module = entry.load()
        if own := getattr(module, "hookspecs", None):
            plugins.manager.add_hookspecs(own)
        return module
    except Exception as error:  # a broken plug-in is reported by name, the others work
        plugins.broken.append(Broken(entry.name, origin, f"{type(error).__name__}: {error}"))
        return None


def _register(plugins: Plugins, module: ModuleType, name: str, origin: str) -> None:
    try:
        plugins.manager.register(module, name)
        plugins.distributions[name] = origin
        plugins.manager.check_pending()  # a misspelt hook fails here
    except Exception as error:
        if plugins.manager.has_plugin(name):
            plugins.manager.unregister(name=name)
        plugins.broken.append(Broken(name, origin, f"{type(error).__name__}: {error}"))


def methods() -> dict[str, Card]:
    """Cards of all methods by name."""
    return installed().cards("fewstep_methods")


def recipes() -> dict[str, Card]:
    """Cards of all training recipes by name."""
    return installed().cards("fewstep_recipes")


def loaders() -> dict[str, Card]:
    """Cards of all models that load by name."""
    return installed().cards("fewstep_loaders")


def tasks() -> dict[str, Card]:
    """Cards of all measurements by name."""
    return installed().cards("fewstep_tasks")


def kernels() -> dict[str, Card]:
    """Cards of all kernels by name."""
    return installed().cards("fewstep_kernels")


def find(cards: dict[str, Card], name: str, kind: str) -> Card:
    """The card called `name`.

    Raises:
        UnknownNameError: none is; the message lists the nearest names and every plug-in that failed to load.
    """
    if name in cards:
        return cards[name]
    near = difflib.get_close_matches(name, cards, n=3, cutoff=0.4) or sorted(cards)
    hint = f"did you mean {', '.join(near)}?" if near else "none is installed"
    failed = "".join(f"; plug-in {b.name} ({b.distribution}) failed: {b.error}" for b in installed().broken)
    raise UnknownNameError(f"no {kind} is called {name!r}: {hint}{failed}")
