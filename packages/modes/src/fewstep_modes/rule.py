"""The rule of MoDES as pure functions, and what a policy is given to decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from fewstep.families.moe import MoeSite
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

Score = Literal["topk_norm", "full_softmax"]


@dataclass(frozen=True, eq=False)
class Routed:
    """What the router of one layer said of T tokens."""

    logits: Float[Tensor, "t e"]
    weight: Float[Tensor, "t k"]
    """As the model would use it, with its scaling factor."""
    index: Int[Tensor, "t k"]
    """In no particular order."""
    hidden: Float[Tensor, "t h"]
    modality: Int8[Tensor, "b s"]
    """``b s`` is T; see `fewstep_modes.modality`."""

    @property
    def kind(self) -> Int8[Tensor, " t"]:
        """Modality of each token."""
        return self.modality.reshape(-1)

    def share(self, score: Score = "topk_norm") -> Float[Tensor, "t k"]:
        """Importance of a pair within its token, in float32: see `shares`."""
        return shares(self.weight, self.logits, self.index, score)


class Policy(Protocol):
    """Decides which pairs are run. Special tokens keep theirs and padding loses them, whatever a policy says."""

    def keep(self, site: MoeSite, routed: Routed) -> Bool[Tensor, "t k"]:
        """True for the pairs that are run."""


def shares(
    weight: Float[Tensor, "t k"], logits: Float[Tensor, "t e"], index: Int[Tensor, "t k"], score: Score
) -> Float[Tensor, "t k"]:
    """``pi_i = w_i / sum_j w_j`` over the selected experts, which is free of scaling factors; or the paper's softmax
    over all experts (``full_softmax``)."""
    if score == "full_softmax":
        return logits.float().softmax(-1).gather(1, index)
    wide = weight.float()
    return wide / wide.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def importance(
    share: Float[Tensor, "t k"], kind: Int8[Tensor, " t"], factor: Mapping[int, float]
) -> Float[Tensor, "t k"]:
    """``s_i = a[l][m(t)] pi_i`` (GMLG, section 3.2): `factor` is ``a`` of one layer by modality."""
    return share * by_modality(kind, factor, 0.0)[:, None]


def reaches(
    scores: Float[Tensor, "t k"], kind: Int8[Tensor, " t"], threshold: Mapping[int, float]
) -> Bool[Tensor, "t k"]:
    """``s_i >= tau[m(t)]`` (DMT, section 3.3): a pair exactly at the threshold is kept."""
    return scores >= by_modality(kind, threshold, -torch.inf)[:, None]


def by_modality(kind: Int8[Tensor, " t"], values: Mapping[int, float], otherwise: float) -> Float[Tensor, " t"]:
    """The value of each token's modality, in float32; `otherwise` where there is none."""
    found = torch.full(kind.shape, otherwise, dtype=torch.float32, device=kind.device)
    for number, value in values.items():
        found[kind == number] = value
    return found


def rank(weight: Float[Tensor, "t k"]) -> Int[Tensor, "t k"]:
    """0 for the largest weight of each token, k - 1 for the smallest; equal ones in their order."""
    return weight.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
