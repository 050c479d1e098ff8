"""The cost of `SGMD` for ``fewstep plan``: few steps without guidance in place of many with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.errors import UnsupportedModelError
from fewstep.families import wan_cost
from fewstep.roofline import Plan, Workload

from .method import SGMD


def plan(method: SGMD, parts: Mapping[str, Any], work: Workload) -> Plan:
    """One call of a Wan pipeline: the teacher's steps with guidance, the student's without.

    Raises:
        UnsupportedModelError: no Wan pipeline.
        ValueError: the video does not divide into latents and patches.
    """
    if "transformer" not in parts:
        raise UnsupportedModelError("Wan video pipelines are supported, and this model has no video transformer")
    steps = work.steps or wan_cost.STEPS
    return Plan(
        before=wan_cost.cost(parts, work, steps, guided=work.guidance > 1),
        after=wan_cost.cost(parts, work, len(method.grid), guided=False),
    )
