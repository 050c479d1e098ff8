"""The training loop: for each phase of a step, losses, backward, clip, update."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..errors import FewstepError
from . import parallel
from .conditions import moved
from .ema import EMA
from .objective import Batch
from .optim import AdamW, optimiser_state
from .parallel import World
from .recipe import Job, Recipe


class LossError(FewstepError, ArithmeticError):
    """A loss or gradient is not finite, or the loss is larger than the recipe allows; no weight has seen it."""


class Loop:
    """The updates of one run: optimisers, counters and averages of the roles of a job."""

    def __init__(self, recipe: Recipe, job: Job, world: World) -> None:
        self.recipe, self.job, self.world = recipe, job, world
        self.roles = job.objective.roles
        self.settings: Mapping[str, AdamW] = recipe.optimisers()
        self.optimisers = {name: chosen.make(self.roles[name]) for name, chosen in self.settings.items()}
        self.updates = dict.fromkeys(self.optimisers, 0)
        """Updates of each role so far: both ways of counting steps."""
        self.ema = EMA(self.roles.main, recipe.ema, recipe.ema_from) if recipe.ema else None

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Tensors of a checkpoint, by part and name."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, optimiser in self.optimisers.items():
            parts[name] = self.roles[name].state()
            parts[f"{name}.optimiser"] = optimiser_state(optimiser, self.roles[name])
        return parts | ({"average": self.ema.state()} if self.ema else {})

    def step(self, step: int) -> dict[str, float]:
        """Run all phases of step number `step` (from 0); returns losses, gradient norms and metrics, by name.

        Raises:
            LossError: see there; weights and optimisers are as the last good update left them.
        """
        seen: dict[str, list[float]] = {}
        for number, name in enumerate(self.job.objective.phases(step)):
            for key, value in self._phase(step, number, name).items():
                seen.setdefault(f"{name}/{key}", []).append(value)
        return {name: sum(values) / len(values) for name, values in seen.items()}

    def _phase(self, step: int, number: int, name: str) -> dict[str, float]:
        parts: list[Mapping[str, Tensor]] = []
        metrics: list[dict[str, Tensor | float]] = []
        with self.roles.updating(name):
            for micro in range(self.recipe.accumulate):
                batch = self._batch(step, number, micro)
                parts.append(self.job.objective.losses(name, batch, step))
                (_total(parts[-1]) / self.recipe.accumulate).backward()
                parts[-1] = {key: value.detach() for key, value in parts[-1].items()}
                metrics.append(batch.metrics)
        means = self._means(parts)
        self._check(step, name, means)
        gradient = self._clip(name)
        if not math.isfinite(gradient):
            raise LossError(f"the gradient of the {name} is {gradient} in step {step + 1} ({_listed(means)})")
        self._update(name, step)
        return {**means, "gradient": gradient, **self._metric_means(metrics)}

    def _update(self, name: str, step: int) -> None:
        for group in self.optimisers[name].param_groups:
            group["lr"] = self.settings[name].rate(step, self.recipe.steps)
        self.optimisers[name].step()
        self.roles.zero_grad()
        if self.ema and self.roles[name] is self.roles.main:
            self.ema.update(self.updates[name])
        self.updates[name] += 1

    def _batch(self, step: int, number: int, micro: int) -> Batch:
        """Draw a micro-batch; its chance depends on its number among those of all ranks, not on which rank has it."""
        place = self.recipe.seed, step, number
        of_all = micro * self.world.size + self.world.rank
        device, data = self.world.device, self.job.data
        cond, x0 = data.draw(self.recipe.batch, generator("data", *place, of_all))
        return Batch(
            cond=moved(cond, device),
            uncond=moved(data.uncond, device),
            x0=x0 if x0 is None else x0.to(device),
            shape=data.shape,
            generator=generator("noise", *place, of_all, device=device),
            shared=generator("shared", *place),
            micro=micro,
        )

    def _means(self, seen: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
        """Means of losses over micro-batches and ranks; a part that a micro-batch lacks counts as 0."""
        names, table = self._table(seen, missing=0.0)
        return dict(zip(names, parallel.mean(table.mean(0)).tolist(), strict=True)) if names else {}

    def _metric_means(self, seen: Sequence[Mapping[str, Tensor | float]]) -> dict[str, float]:
        """Means of metrics over the micro-batches and ranks that have them; those that none has are left out."""
        names, table = self._table(seen, missing=math.nan)
        if not names:
            return {}
        known = ~table.isnan()
        total, count = parallel.mean(torch.stack([table.where(known, 0.0).sum(0), known.float().sum(0)])).tolist()
        return {name: sums / many for name, sums, many in zip(names, total, count, strict=True) if many}

    def _table(self, seen: Sequence[Mapping[str, Tensor | float]], missing: float) -> tuple[list[str], Tensor]:
        names = sorted({name for one in seen for name in one})
        rows = [[_number(one.get(name, missing), self.world.device) for name in names] for one in seen]
        return names, torch.stack([torch.stack(row) for row in rows]) if names else torch.empty(0)

    def _check(self, step: int, name: str, means: dict[str, float]) -> None:
        total = math.fsum(means.values()) if all(map(math.isfinite, means.values())) else float("nan")
        if not abs(total) <= self.recipe.largest:
            raise LossError(f"the loss of the {name} is {total:.6g} in step {step + 1} ({_listed(means)})")

    def _clip(self, name: str) -> float:
        """Clip the gradients of a role to the norm of the recipe; returns their norm before, over all ranks."""
        weights = self.roles[name].parameters()
        if not any(isinstance(weight, DTensor) for weight in weights):
            parallel.average_gradients(weights)
        norm = torch.nn.utils.clip_grad_norm_(weights, self.recipe.clip)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def generator(*key: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator that is seeded by its purpose, so that nothing depends on what was drawn before."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def _total(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([part.float() if part.dtype.itemsize < 4 else part for part in parts.values()]).sum()


def _number(value: Tensor | float, device: torch.device) -> Tensor:
    number = value.detach() if isinstance(value, Tensor) else torch.tensor(value)
    return number.to(device, torch.float32).mean()


def _listed(means: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in means.items())
