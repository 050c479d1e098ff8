"""Optimiser settings of one role, and the optimiser they make."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from .roles import Role


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (arXiv 1711.05101) with a learning rate by step."""

    lr: float = 2e-6
    """Highest learning rate."""
    betas: tuple[float, float] = (0.0, 0.999)
    """Decay of the two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    warmup: int = 0
    """Steps in which the rate rises linearly."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The rate after the warm-up; cosine falls to zero at the last step."""

    def __post_init__(self) -> None:
        if not self.lr > 0 or not all(0 <= beta < 1 for beta in self.betas) or self.warmup < 0:
            raise ValueError(f"an optimiser needs lr > 0, betas in [0, 1) and warmup >= 0, found {self}")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate in step number `step` (from 0) of `steps`."""
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        falling = 0.5 * (1 + math.cos(math.pi * step / steps)) if self.schedule == "cosine" else 1.0
        return self.lr * rising * falling

    def make(self, role: Role) -> torch.optim.AdamW:
        """An optimiser of what `role` trains, with its moments there already: the names in checkpoints never change."""
        weights = role.parameters()
        fused = not any(isinstance(weight, DTensor) for weight in weights)
        made = torch.optim.AdamW(
            weights, self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=fused
        )
        for weight in weights:
            zeros = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            made.state[weight] = {"step": torch.zeros((), device=weight.device if fused else "cpu"), **zeros}
        return made


def optimiser_state(optimiser: torch.optim.Optimizer, role: Role) -> dict[str, Tensor]:
    """The tensors of an optimiser by the names of the weights they belong to: ``proj.weight/exp_avg``."""
    return {
        f"{name}/{kind}": value
        for name, weight in role.named_parameters().items()
        for kind, value in optimiser.state[weight].items()
    }
