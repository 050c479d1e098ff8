"""Self-consistency of a student under composition of its own Euler steps: end points, the loss, the defect.

``v(x, a)`` is the student's velocity and ``Psi^{a->b}(x) = x + (b - a) v(x, a)`` its Euler operator. Where steps
compose, ``Psi^{s->e} = Psi^{m->e} Psi^{s->m}`` for all levels ``s > m > e``: a semigroup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from fewstep import flow
from jaxtyping import Float
from torch import Tensor

from .steps import Triple

Latent = Float[Tensor, "b *dims"]
Velocity = Callable[[Latent, float], Latent]
"""``(noisy, level) -> velocity``, with condition, cache and frame offset of the forward that made ``v_s``."""
SemigroupWeight = Literal["one-minus-s", "one"]
SemigroupTarget = Literal["latent", "velocity"]

WEIGHTS: Mapping[SemigroupWeight, Callable[[Triple], float]] = {
    "one-minus-s": lambda triple: 1 - triple.start,
    "one": lambda triple: 1.0,
}
"""``w`` of the loss: that of the released code, which leaves out triples from pure noise, or none."""
SCALES: Mapping[SemigroupTarget, Callable[[Triple], float]] = {
    "latent": lambda triple: 1.0,
    "velocity": lambda triple: (triple.start - triple.end) ** -2,
}
"""Factor of the squared difference of end points: none, or that of their mean velocities ``(x_s - end) / (s - e)``."""


class EndPoints(NamedTuple):
    """The two places where one sample arrives at level ``e``."""

    direct: Latent
    """``end1``, in one step; in the graph of ``v_s``."""
    composed: Latent
    """``end2``, over the middle level; without gradient."""


def end_points(noisy: Latent, v_s: Latent, triple: Triple, velocity: Velocity) -> EndPoints:
    """Direct and composed end point (Salt, arXiv 2604.03118).

        y = x_s - (s - m) sg[v_s]                v_m = v(y, m)                     without gradient
        end1 = x_s - (s - e) v_s                 end2 = y - (m - e) v_m

    Args:
        noisy: ``x_s``, input of the student at level ``s``; no gradient goes to it.
        v_s: its prediction there, in the graph where the loss is to train it.
        triple: ``(s, m, e)``.
        velocity: of the student; called once, without gradient.
    """
    start, middle, end = triple
    noisy = noisy.detach()
    direct = flow.euler(noisy, v_s, start, end)
    with torch.no_grad():
        halfway = flow.euler(noisy, v_s.detach(), start, middle)
        composed = flow.euler(halfway, velocity(halfway, middle), middle, end)
    return EndPoints(direct, composed.detach())


def semigroup_loss(
    direct: Latent,
    composed: Latent,
    triple: Triple,
    *,
    weight: SemigroupWeight = "one-minus-s",
    target: SemigroupTarget = "latent",
) -> Float[Tensor, ""]:
    """``w(s) mean (end1 - sg[end2])^2``, the squared semigroup defect of one triple (Salt, arXiv 2604.03118).

    Since ``end1 - end2 = -(m - e)(v_s - v_m)``, it is ``w (m - e)^2 mean (v_s - v_m)^2``, and with clean predictions
    ``w ((m - e) / m)^2 mean (xhat_s - xhat_m)^2``; its gradient with respect to ``v_s`` is
    ``2 w (s - e)(m - e)(v_s - v_m) / N``.

    Args:
        direct: ``end1``, of all chunks of a sample where it has several.
        composed: ``end2``, of the same shape.
        triple: ``(s, m, e)`` that both belong to.
        weight: name in `WEIGHTS`.
        target: ``latent``, or ``velocity``: the mean velocities to the end points, as an option of the released code.
    """
    return WEIGHTS[weight](triple) * SCALES[target](triple) * (direct - composed.detach()).square().mean()
