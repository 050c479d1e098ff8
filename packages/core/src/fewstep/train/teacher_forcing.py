"""Teacher forcing: a causal model learns to denoise each chunk of a clip given the clean chunks before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import flow
from ..flow import Latent
from . import conditions
from .objective import Batch
from .roles import Roles

PredictForced = Callable[[nn.Module, Latent, Latent, Float[Tensor, "b f"], Any, int], Latent]
"""``(network, clean, noisy, sigma, cond, chunk) -> velocity`` of all chunks, each given the clean ones before it."""


@dataclass(eq=False, kw_only=True)
class TeacherForcing:
    """Regress the velocity of every chunk, each at a noise level of its own, in one pass over a clip.

    ``mean (v(x_s | clean chunks before) - (eps - x))^2`` with ``s = phi_k(u)``, u uniform on [0, 1] for each chunk.
    A condition may be a pair of prompt embeddings and weights ``[B, F]`` of the frames that the prompt describes.
    """

    roles: Roles
    """``student``: the network that is trained."""
    predict: PredictForced
    """Call of the network, as its family makes it."""
    chunk: int
    """Frames of a chunk."""
    shift: float = 5.0
    """Factor k of the time shift: more training at high noise for k > 1."""
    drop: float = 0.1
    """Share of the samples whose prompt is replaced by the empty one."""

    def phases(self, step: int) -> tuple[str, ...]:
        return ("student",)

    def losses(self, role: str, batch: Batch, step: int) -> Mapping[str, Tensor]:
        if batch.x0 is None:
            raise ValueError("teacher forcing needs data with clean latents; this data has prompts only")
        size, frames, generator = len(batch), batch.x0.shape[2], batch.generator
        uniform = torch.rand(size, frames // self.chunk, generator=generator, device=generator.device)
        sigma = flow.shift(uniform, self.shift).repeat_interleave(self.chunk, 1).to(batch.x0.device)
        cond, weight = self._prompted(batch, frames)
        eps = batch.normal()
        noisy = flow.noise(batch.x0, eps, sigma[:, None, :, None, None])
        with self.roles.student.running(batch.x0, cond) as (network, clean, cond):
            predicted = self.predict(network, clean, noisy.to(clean.dtype), sigma, cond, self.chunk)
        error = (predicted - flow.velocity(batch.x0, eps)).square().mean((1, 3, 4))
        return {"velocity": (error * weight).sum() / weight.sum().clamp(min=1)}

    def _prompted(self, batch: Batch, frames: int) -> tuple[Tensor, Tensor]:
        """Embeddings, some of them dropped, and the weight of each frame."""
        cond, weight = batch.cond if isinstance(batch.cond, tuple) else (batch.cond, None)
        uncond = conditions.first_tensor(batch.uncond)
        dropped = torch.rand(len(cond), generator=batch.generator, device=batch.generator.device) < self.drop
        cond = torch.where(dropped.to(cond.device)[:, None, None], uncond, cond)
        return cond, cond.new_ones(len(cond), frames) if weight is None else weight
