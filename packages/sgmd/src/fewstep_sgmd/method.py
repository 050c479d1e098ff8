"""`SGMD`: a four-step student of a Wan pipeline, made by score gradient matching distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fewstep.students.wan import WanStudent


@dataclass(frozen=True, kw_only=True)
class SGMD(WanStudent):
    """A few-step video student made by score gradient matching distillation (SGMD, arXiv:2605.30116).

    Applied to a ``WanPipeline``: the transformer gets the student's weights, the scheduler runs exactly the steps that
    the student was trained on, and every call of the pipeline makes that many steps without guidance, whatever number
    of steps and guidance scale it asks for. The weights that were there wait in host memory.

    Raises:
        ValueError: the steps or the shift are impossible.
    """

    name: ClassVar[str] = "sgmd"
