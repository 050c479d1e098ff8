"""The costs of `Salt` and `SCDMD` for ``fewstep plan``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.errors import UnsupportedModelError
from fewstep.families import wan_cost
from fewstep.roofline import Plan, Workload

from .method import Salt
from .sc_dmd import SCDMD


def plan(method: Salt | SCDMD, parts: Mapping[str, Any], work: Workload) -> Plan:
    """One call of a Wan pipeline: the teacher's steps with guidance, the student's without, chunk by chunk for `Salt`.

    Raises:
        UnsupportedModelError: no Wan pipeline.
        ValueError: the video does not divide into latents and patches.
    """
    if "transformer" not in parts:
        raise UnsupportedModelError("Wan video pipelines are supported, and this model has no video transformer")
    steps = work.steps or wan_cost.STEPS
    before = wan_cost.cost(parts, work, steps, guided=work.guidance > 1)
    if isinstance(method, Salt):
        after = wan_cost.causal(parts, work, len(method.grid), method.chunk, method.window)
    else:
        after = wan_cost.cost(parts, work, len(method.grid), guided=False)
    return Plan(before=before, after=after)
