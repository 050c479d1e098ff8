"""The five hooks of a plug-in. Hooks only list cards; they run neither in a forward pass nor in a training step."""

from collections.abc import Iterable

import pluggy

from .cards import Card

hookspec = pluggy.HookspecMarker("fewstep")


@hookspec
def fewstep_methods() -> Iterable[Card]:
    """Methods of this package; targets are subclasses of `fewstep.Method`."""
    raise AssertionError("a specification, never called")


@hookspec
def fewstep_recipes() -> Iterable[Card]:
    """Named training runs; targets are functions returning a recipe."""
    raise AssertionError("a specification, never called")


@hookspec
def fewstep_loaders() -> Iterable[Card]:
    """Models this package loads by name; targets are functions ``(dtype, device) -> fewstep.Loaded``."""
    raise AssertionError("a specification, never called")


@hookspec
def fewstep_tasks() -> Iterable[Card]:
    """Measurements this package adds; targets are dataclasses with the `fewstep.bench.Task` protocol."""
    raise AssertionError("a specification, never called")


@hookspec
def fewstep_kernels() -> Iterable[Card]:
    """Kernels this package ships; targets are `fewstep.kernels.Kernel` objects."""
    raise AssertionError("a specification, never called")
