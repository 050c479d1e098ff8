"""`SCDMD`: a bidirectional few-step student whose steps compose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fewstep.students.wan import WanStudent


@dataclass(frozen=True, kw_only=True)
class SCDMD(WanStudent):
    """A few-step video student made by self-consistent distribution matching (SC-DMD, arXiv:2604.03118).

    Applied to a ``WanPipeline``: the transformer gets the student's weights, the scheduler runs exactly the steps that
    are asked for, and every call of the pipeline makes that many steps without guidance, whatever number of steps and
    guidance scale it asks for. Its steps compose, so one student is run with two, four or eight of them.

    Raises:
        ValueError: the steps or the shift are impossible.
    """

    name: ClassVar[str] = "sc-dmd"
