"""Alignment of a sample with a reference of more steps: features of the frozen teacher, or the latents themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from fewstep import flow
from fewstep.flow import Latent, ScoreTime
from fewstep.train.objective import Batch
from fewstep.train.roles import Role
from jaxtyping import Float
from torch import Tensor

from .discrepancy import (
    Tokens,
    energy_discrepancy,
    gaussian_discrepancy,
    mean_discrepancy,
    relation_distance,
)

AlignmentKind = Literal["trd", "mmd-linear", "mmd-rbf", "mmd-energy", "mse"]


class Alignment(Protocol):
    """Distance of a sample from a reference."""

    def __call__(
        self, teacher: Role, x: Latent, reference: Latent, batch: Batch, *, given: int = 0
    ) -> Float[Tensor, ""]:
        """A number whose gradient goes to `x` alone.

        Args:
            teacher: frozen.
            x: the sample, ``[B, C, F, H, W]``.
            reference: of the same shape.
            batch: its condition and its chance.
            given: first frames that the teacher sees, but that are not compared and get no gradient.
        """


@dataclass(frozen=True, kw_only=True)
class Features:
    """Hidden tokens of the teacher for two noised videos: one level and one noise for both, prompt without guidance."""

    block: int = 20
    """Number of the teacher's block after which tokens are taken, from 0; later blocks do not run."""
    between: tuple[int, int] = (0, 200)
    """Raw levels ``r``: the noise level is ``phi(r / 1000)``, at most 0.554 with these."""
    score_time: ScoreTime = ScoreTime()
    """Shift of the level, and its least and greatest values."""

    def pair(
        self, teacher: Role, x: Latent, reference: Latent, batch: Batch, *, given: int = 0
    ) -> tuple[Tokens, Tokens]:
        """Tokens of the frames of both after the given ones, without gradient for the second."""
        x = torch.cat([x[:, :, :given].detach(), x[:, :, given:]], 2) if given else x
        sigma = self.score_time.sample(len(x), batch.generator, self.between)
        eps = _normal(x, batch.generator)
        with torch.no_grad():
            other = self._tokens(teacher, flow.noise(reference.detach(), eps, sigma), sigma, batch.cond, given)
        return self._tokens(teacher, flow.noise(x, eps, sigma), sigma, batch.cond, given), other

    def _tokens(self, teacher: Role, noisy: Latent, sigma: Tensor, cond: Any, given: int) -> Tokens:
        return teacher.hidden_tokens(noisy, sigma, cond, self.block)[:, given:].flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class FeatureAlignment:
    """A discrepancy of the teacher's features."""

    discrepancy: Callable[[Tokens, Tokens], Tensor]
    """See `fewstep_salt.discrepancy`."""
    features: Features
    """Block and noise levels of the features."""

    def __call__(
        self, teacher: Role, x: Latent, reference: Latent, batch: Batch, *, given: int = 0
    ) -> Float[Tensor, ""]:
        """See `Alignment`."""
        return self.discrepancy(*self.features.pair(teacher, x, reference, batch, given=given))


class LatentAlignment:
    """``mean (x - sg[xref])^2``, without the teacher."""

    def __call__(
        self, teacher: Role, x: Latent, reference: Latent, batch: Batch, *, given: int = 0
    ) -> Float[Tensor, ""]:
        """See `Alignment`."""
        return (x - reference.detach())[:, :, given:].square().mean()


def make_alignment(kind: AlignmentKind = "trd", *, features: Features | None = None, margin: float = 0.1) -> Alignment:
    """Make the alignment of this name: token relations, another discrepancy of the same features, or plain latents.

    Args:
        kind: name of the alignment.
        features: None takes those of the paper, for a teacher of more than 20 blocks.
        margin: differences of token relations up to it count as none; for ``trd`` alone.

    Raises:
        ValueError: there is no alignment of that name, or the margin is negative.
    """
    if margin < 0:
        raise ValueError(f"the margin of an alignment must be 0 or more, found {margin}")
    discrepancies: Mapping[str, Callable[[Tokens, Tokens], Tensor]] = {
        "trd": partial(relation_distance, margin=margin),
        "mmd-linear": mean_discrepancy,
        "mmd-rbf": gaussian_discrepancy,
        "mmd-energy": energy_discrepancy,
    }
    if kind == "mse":
        return LatentAlignment()
    if kind not in discrepancies:
        raise ValueError(f"no alignment is called {kind!r}; there are {', '.join(discrepancies)} and mse")
    return FeatureAlignment(discrepancy=discrepancies[kind], features=features or Features())


def _normal(like: Latent, generator: torch.Generator) -> Latent:
    if like.is_meta:  # a plan: sizes without numbers
        return torch.empty_like(like)
    return torch.randn(like.shape, generator=generator, device=generator.device)
