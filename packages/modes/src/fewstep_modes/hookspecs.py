"""Hooks by which other packages add to expert skipping; found through the same entry points as every plug-in."""

from collections.abc import Mapping

import pluggy

hookspec = pluggy.HookspecMarker("fewstep")


@hookspec
def fewstep_skip_policies() -> Mapping[str, str]:
    """Policies by name: ``"module:Name"`` of a class, made without arguments, with ``keep(site, routed)``.

    ``fewstep bench skip-policy --policy-name NAME`` measures one. `routed` is a `fewstep_modes.rule.RouterOutput`.
    """
    raise AssertionError("a specification, never called")


@hookspec
def fewstep_moe_adapters() -> Mapping[str, str]:
    """By class name of a model: ``"module:function"`` of ``(model) -> list[fewstep.families.moe.MoeSite]``."""
    raise AssertionError("a specification, never called")


@hookspec
def fewstep_modality() -> Mapping[str, str]:
    """By class name of a model: ``"module:function"`` of ``(model, kwargs of its forward) -> int8 [B, S]``.

    Numbers as in `fewstep.families.vlm`; 3 to 7 are modalities of the package's own (audio, ...), whose tokens follow
    the threshold of text unless the policy has one of their number.
    """
    raise AssertionError("a specification, never called")
