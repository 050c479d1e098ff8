"""The rule of MoDES as pure functions, and the input of every skip policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from fewstep.families.moe import MoeSite
from fewstep.families.vlm import TEXT
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

RoutingScore = Literal["topk_norm", "full_softmax"]
"""Routing weight normalised over the selected experts (the authors' code), or softmax over all (the paper)."""


@dataclass(frozen=True, eq=False)
class RouterOutput:
    """Output of one layer's router for T tokens, with what the tokens are."""

    logits: Float[Tensor, "t e"]
    weight: Float[Tensor, "t k"]
    """As the model would use it, with its scaling factor."""
    index: Int[Tensor, "t k"]
    """Selected experts, in no particular order."""
    hidden: Float[Tensor, "t h"]
    """Input of the router."""
    modality: Int8[Tensor, "b s"]
    """Modality of each token by prompt, ``b s`` = T; numbers as in `fewstep.families.vlm`."""

    @property
    def kind(self) -> Int8[Tensor, " t"]:
        """Modality of each token."""
        return self.modality.reshape(-1)


SkipPolicy = Callable[[MoeSite, RouterOutput], Tensor]
"""Says which pairs are run: bool ``[T, k]``. Special tokens keep theirs and padding loses them, whatever it says."""


def shares(routed: RouterOutput, score: RoutingScore = "topk_norm") -> Float[Tensor, "t k"]:
    """Return the importance of each selected expert within its token, in [0, 1] and float32.

    GMLG, section 3.2: ``pi = softmax(logits)`` over all experts (``full_softmax``). The authors' code normalises over
    the selected experts, ``pi_i = w_i / sum_j w_j`` (``topk_norm``), which is free of a model's scaling factor.
    """
    if score == "full_softmax":
        return routed.logits.float().softmax(-1).gather(1, routed.index)
    wide = routed.weight.float()
    return wide / wide.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def importance(
    share: Float[Tensor, "t k"], kind: Int8[Tensor, " t"], factor: Mapping[int, float]
) -> Float[Tensor, "t k"]:
    """Scale by layer importance, ``s_i = a[l][m(t)] pi_i`` (GMLG, section 3.2); `factor` is ``a[l]`` by modality."""
    return share * by_modality(kind, factor, 0.0)[:, None]


def reaches(
    scores: Float[Tensor, "t k"], kind: Int8[Tensor, " t"], threshold: Mapping[int, float]
) -> Bool[Tensor, "t k"]:
    """Keep where ``s_i >= tau[m(t)]`` (DMT, section 3.3); a pair exactly at the threshold is kept."""
    return scores >= by_modality(kind, threshold, -torch.inf)[:, None]


def by_modality(kind: Int8[Tensor, " t"], values: Mapping[int, float], otherwise: float) -> Float[Tensor, " t"]:
    """Look up the value of each token's modality, in float32; `otherwise` where there is none."""
    looked_up = torch.full(kind.shape, otherwise, dtype=torch.float32, device=kind.device)
    for number, value in values.items():
        looked_up[kind == number] = value
    return looked_up


def rank(weight: Float[Tensor, "t k"]) -> Int[Tensor, "t k"]:
    """Rank the weights of each token: 0 for the largest, k - 1 for the smallest; equal ones in their order."""
    return weight.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


class Thresholds:
    """The policy of MoDES: keep the pairs whose importance reaches the threshold of their token's modality."""

    def __init__(
        self, factors: Mapping[int, Mapping[int, float]], tau: Mapping[int, float], score: RoutingScore
    ) -> None:
        """Make the policy of ``a[l][m]`` by layer and modality, and thresholds by modality."""
        self.factors, self.tau, self.score = factors, tau, score

    def scores(self, site: MoeSite, routed: RouterOutput) -> Float[Tensor, "t k"]:
        """Return ``s`` of every pair; a modality without a factor of its own has that of text."""
        return importance(shares(routed, self.score), self._known(routed), self.factors[site.layer])

    def __call__(self, site: MoeSite, routed: RouterOutput) -> Bool[Tensor, "t k"]:
        """Return True for the pairs at or above the threshold."""
        return reaches(self.scores(site, routed), self._known(routed), self.tau)

    def _known(self, routed: RouterOutput) -> Tensor:
        return routed.kind.masked_fill(routed.kind > max(self.tau), TEXT)
