"""From logits to tokens: candidates, their confidence, and which of them are unmasked. Pure functions."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .decoding import Remasking


def propose(
    logits: Float[Tensor, "b c v"],
    *,
    temperature: float,
    remasking: Remasking,
    generator: torch.Generator | None,
) -> tuple[Int[Tensor, "b c"], Float[Tensor, "b c"]]:
    """The candidate token of each row and its confidence, in float64.

    ``token = argmax_v  exp(z_v) / (-log u_v)^temperature`` with uniform ``u`` (Gumbel-max; the argmax of ``z`` at
    temperature 0). Logits of tokens that may not be chosen are ``-inf``.
    """
    z = logits.double()
    noise = z
    if temperature > 0:
        uniform = torch.rand(z.shape, generator=generator, dtype=torch.float64).to(z.device).clamp_(min=1e-300)
        noise = z - temperature * torch.log(-torch.log(uniform))
    token = noise.argmax(-1)
    return token, confidence(z, token, remasking, generator)


def confidence(
    logits: Float[Tensor, "b c v"],
    token: Int[Tensor, "b c"],
    remasking: Remasking,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b c"]:
    """How sure the model is of each row; higher is surer."""
    if remasking == "random":
        return torch.rand(token.shape, generator=generator, dtype=logits.dtype).to(logits.device)
    log_probs = logits.log_softmax(-1)
    if remasking == "entropy":
        return (log_probs.exp() * log_probs.nan_to_num(neginf=0.0)).sum(-1)
    if remasking == "margin":
        best = log_probs.topk(2, -1).values.exp()
        return best[..., 0] - best[..., 1]
    return log_probs.gather(-1, token[..., None])[..., 0].exp()


def choose(
    confidence: Float[Tensor, "b c"],
    valid: Bool[Tensor, "b c"],
    count: Int[Tensor, " b"],
    threshold: float | None = None,
) -> Bool[Tensor, "b c"]:
    """The `count` surest valid candidates of each row, ties to the lower index; with a threshold all that reach it.

    With a threshold at least the surest valid candidate is chosen, and `count` only says (by 0) which rows rest.
    """
    at_most = count if threshold is None else count.clamp(max=1)
    chosen = surest(confidence, valid, at_most)
    if threshold is not None:
        chosen |= valid & (confidence >= threshold) & (count > 0)[:, None]
    return chosen


def surest(
    confidence: Float[Tensor, "b c"], valid: Bool[Tensor, "b c"], count: Int[Tensor, " b"]
) -> Bool[Tensor, "b c"]:
    """Mask of the `count` largest valid entries of each row; of equal ones the first (bf16 confidences tie often)."""
    order = confidence.masked_fill(~valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(confidence.shape[1], device=confidence.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, ranks)
    return (rank < count[:, None]) & valid
