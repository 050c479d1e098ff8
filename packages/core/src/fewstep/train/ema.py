"""Exponential moving average of the weights of a role."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .roles import Role


class EMA:
    """``e <- decay e + (1 - decay) w`` in float32; before `start` updates the average is the weights themselves."""

    def __init__(self, role: Role, decay: float, start: int = 0) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"the decay of an average must be between 0 and 1, found {decay}")
        self.role, self.decay, self.start = role, decay, start
        self.averages = {name: weight.detach().float().clone() for name, weight in role.named_parameters().items()}

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Take in the weights after their update number `updates` (from 0)."""
        decay = self.decay if updates >= self.start else 0.0
        for name, weight in self.role.named_parameters().items():
            self.averages[name].lerp_(weight.detach().float(), 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """The averages by the names of their weights."""
        return self.averages

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run the role with its averages; the weights come back bit for bit."""
        weights = self.role.named_parameters()
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        try:
            self._copy(self.averages)
            yield
        finally:
            self._copy(before)

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, weight in self.role.named_parameters().items():
            weight.copy_(values[name])
