"""Extra losses: further requirements on the student's sample, beside whatever matches its distribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from .conditions import first_tensor
from .objective import Batch
from .roles import Roles
from .rollout import Rollout


class ExtraLoss(Protocol):
    """A loss of the sample that the student was trained on in this step; fits every objective with such samples.

    An error in it stops the run. All chance comes from the batch.
    """

    def __call__(self, roles: Roles, sample: Rollout, batch: Batch, step: int) -> Tensor | None:
        """A number with a gradient to the student; None where the loss does not apply to this sample or step.

        Args:
            roles: of the run; all but the student are frozen.
            sample: its exit step carries the gradient.
            batch: the batch that the sample was made for.
            step: number of the step, from 0.
        """


def counted(values: Mapping[str, Tensor | None], batch: Batch) -> dict[str, Tensor]:
    """The losses, 0 where one does not apply; how often each does is logged as ``NAME_active``."""
    device = first_tensor(batch.cond).device
    for name, value in values.items():
        batch.metrics[f"{name}_active"] = float(value is not None)
    return {name: torch.zeros((), device=device) if value is None else value for name, value in values.items()}
