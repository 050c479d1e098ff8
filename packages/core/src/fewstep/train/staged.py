"""`Staged`: an objective whose settings change once the run has come so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .objective import Batch, Objective
from .roles import Roles


@dataclass(eq=False)
class Staged:
    """Objectives on the same roles, one after the other.

    Raises:
        ValueError: there is none for step 0, or they are on different roles.
    """

    stages: Mapping[int, Objective]
    """Objectives by the step that they begin at."""
    roles: Roles = field(init=False)
    """Those of all stages."""

    def __post_init__(self) -> None:
        if min(self.stages, default=None) != 0:
            raise ValueError(f"the first stage begins at step 0, found {sorted(self.stages)}")
        self.roles = self.stages[0].roles
        if any(objective.roles is not self.roles for objective in self.stages.values()):
            raise ValueError("the stages of a run train the same roles")

    def at(self, step: int) -> Objective:
        """The objective of a step."""
        return self.stages[max(since for since in self.stages if since <= step)]

    def phases(self, step: int) -> Sequence[str]:
        return self.at(step).phases(step)

    def losses(self, role: str, batch: Batch, step: int) -> Mapping[str, Tensor]:
        return self.at(step).losses(role, batch, step)
