"""The loss of masked diffusion and the bound on the likelihood that it estimates (LLaDA, arXiv 2502.09992)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fewstep.train.objective import Batch
from fewstep.train.roles import Roles
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def tokens_to_logits(network: Any, noisy: Tensor, sigma: Tensor, cond: Int[Tensor, "b n"]) -> Float[Tensor, "b n v"]:
    """Call of the network for a `Role`: partly masked tokens are the condition, and there is no other input."""
    return network(cond, use_cache=False).logits


def nats(logits: Float[Tensor, "b n v"], tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """``-log p(token)`` at each position."""
    return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")


@dataclass(eq=False, kw_only=True)
class MaskedDiffusion:
    """The loss of masked diffusion (LLaDA, equation 3); conditions are tokens ``[B, n]``.

        L = E_t [ 1/t  sum_{i masked} -log p(x_i | x_t) ] / n

    A level ``t`` is drawn for each sequence and each of its tokens is masked with probability ``t``. The levels of one
    batch are spread evenly over (0, 1], which leaves the distribution of each as it is and makes the loss steadier.
    """

    roles: Roles
    """``student``."""
    mask: int
    """Token id of a mask."""

    def phases(self, step: int) -> tuple[str, ...]:
        return ("student",)

    def losses(self, role: str, batch: Batch, step: int) -> Mapping[str, Tensor]:
        tokens, source = batch.cond, batch.generator
        size = len(tokens)
        spread = torch.rand(1, generator=source, device=source.device) + torch.arange(size, device=source.device) / size
        level = (1 - spread % 1).to(tokens.device)
        drawn = torch.rand(tokens.shape, generator=source, device=source.device).to(tokens.device)
        masked = drawn < level[:, None]
        logits = self.roles.student.velocity(level, level, tokens.where(~masked, self.mask))
        lost = nats(logits, tokens) * masked
        batch.metrics["masked"] = lost.detach().sum() / masked.sum().clamp(min=1)
        return {"bound": (lost / level[:, None]).mean()}


@torch.no_grad()
def bound(model: Any, tokens: Int[Tensor, "b n"], generator: torch.Generator, draws: int = 1) -> float:
    """Estimate an upper bound on bits per token (LLaDA, equation 6).

        E_l [ n/l  sum_{l masked} -log2 p ] / n

    It has the mean of the loss and less variance: the number ``l`` of masked tokens is spread evenly over 1..n, and
    exactly so many are masked.
    """
    total = 0.0
    size, n = tokens.shape
    for _ in range(draws):
        spread = (torch.rand((), generator=generator) + torch.arange(size) / size) % 1
        count = 1 + (spread * n).long()
        masked = torch.rand(size, n, generator=generator).argsort(1).argsort(1) < count[:, None]
        total += float((masked_nats(model, tokens, masked).sum(1) / count).mean())
    return total / draws / torch.tensor(2.0).log().item()


def masked_nats(model: Any, tokens: Int[Tensor, "b n"], masked: Tensor) -> Float[Tensor, "b n"]:
    """``-log p`` of the masked tokens given the others, and 0 at the others."""
    logits = model(tokens.where(~masked, model.config.mask_token_id), use_cache=False).logits.float()
    return nats(logits, tokens) * masked
