"""Flow matching on real data, which makes teachers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import flow
from .objective import Batch
from .roles import Roles


@dataclass(eq=False, kw_only=True)
class FlowMatching:
    """Regress the velocity of noised data; some prompts are dropped, so that the model can be guided later.

    ``mean (v(x_s) - (eps - x))^2`` with ``s = phi_k(u)``, u uniform on [0, 1] (flow matching, arXiv 2210.02747).
    """

    roles: Roles
    """``student``: the network that is trained."""
    shift: float = 3.0
    """Factor k of the time shift: more training at high noise for k > 1."""
    drop: float = 0.1
    """Share of the samples whose prompt is replaced by the empty one."""

    def phases(self, step: int) -> tuple[str, ...]:
        return ("student",)

    def losses(self, role: str, batch: Batch, step: int) -> Mapping[str, Tensor]:
        if batch.x0 is None:
            raise ValueError("flow matching needs data with clean latents; this data has prompts only")
        size, generator = len(batch), batch.generator
        uniform = torch.rand(2, size, generator=generator, device=generator.device)
        sigma, dropped = flow.shift(uniform[0], self.shift), (uniform[1] < self.drop).to(batch.cond.device)
        cond = torch.where(dropped.view(-1, *[1] * (batch.cond.ndim - 1)), batch.uncond, batch.cond)
        eps = batch.normal()
        predicted = self.roles.student.velocity(flow.noise(batch.x0, eps, sigma), sigma, cond)
        return {"velocity": (predicted - flow.velocity(batch.x0, eps)).square().mean()}
