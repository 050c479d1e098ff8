"""Choices as pure functions: tokens to unmask, positions to compute, prompt tokens to read (arXiv 2602.02159).

The authors' text was not available: formulas are those of the paper's figures where marked so, else our reading of it.
"""

from __future__ import annotations

from math import ceil
from typing import Literal

import torch
from fewstep.kernels.block_means import block_means
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Remasking = Literal["low_confidence", "margin", "entropy", "random"]
Aggregate = Literal["softmax", "mean", "max"]
UNIT = 8
"""Tokens of a unit, where a block is summarized by its units instead of as a whole."""


def propose(
    logits: Float[Tensor, "b c v"], *, temperature: float, remasking: Remasking, generator: torch.Generator | None
) -> tuple[Int[Tensor, "b c"], Float[Tensor, "b c"]]:
    """The candidate token of each row and its confidence, in float64; tokens with a logit of ``-inf`` are never taken.

    Gumbel-max in float64 as in LLaDA's code (arXiv 2502.09992), ``u`` uniform; the argmax of ``z`` at temperature 0:

        token = argmax_v  exp(z_v) / (-log u_v)^temperature
    """
    z = logits.double()
    noisy = z
    if temperature > 0:
        uniform = torch.rand(z.shape, generator=generator, dtype=torch.float64).to(z.device).clamp_(min=1e-300)
        noisy = z - temperature * torch.log(-torch.log(uniform))
    token = noisy.argmax(-1)
    return token, confidence(z, token, remasking, generator)


def confidence(
    logits: Float[Tensor, "b c v"],
    token: Int[Tensor, "b c"],
    remasking: Remasking,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b c"]:
    """Confidence in the candidate `token` of each row: ``softmax(z)_token``, or what `remasking` names instead."""
    if remasking == "random":
        return torch.rand(token.shape, generator=generator, dtype=logits.dtype).to(logits.device)
    log_probs = logits.log_softmax(-1)
    if remasking == "entropy":
        return (log_probs.exp() * log_probs.nan_to_num(neginf=0.0)).sum(-1)
    if remasking == "margin":
        best = log_probs.topk(2, -1).values.exp()
        return best[..., 0] - best[..., 1]
    return log_probs.gather(-1, token[..., None])[..., 0].exp()


def top_confidence(
    confidence: Float[Tensor, "b c"], valid: Bool[Tensor, "b c"], count: Int[Tensor, " b"]
) -> Bool[Tensor, "b c"]:
    """Mask of the `count` largest valid entries of each row; of equal ones the first (bf16 confidences tie often)."""
    order = confidence.masked_fill(~valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(confidence.shape[1], device=confidence.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, ranks)
    return (rank < count[:, None]) & valid


def choose(
    confidence: Float[Tensor, "b c"],
    valid: Bool[Tensor, "b c"],
    count: Int[Tensor, " b"],
    threshold: float | None = None,
) -> Bool[Tensor, "b c"]:
    """Mask of the candidates to unmask: the `count` most confident valid ones of each row.

    With a threshold (Fast-dLLM's ``tau``, arXiv 2505.22618) all that reach it, at least the most confident one; a
    `count` of 0 still means none.
    """
    if threshold is None:
        return top_confidence(confidence, valid, count)
    reached = valid & (confidence >= threshold) & (count > 0)[:, None]
    return reached | top_confidence(confidence, valid, count.clamp(max=1))


def widen(focus: Bool[Tensor, "b n"], window: int | None) -> Bool[Tensor, "b n"]:
    """Active positions: `window` (W, odd) positions around each focus position; None is all, where any is in focus.

    Purely positional and clipped at both ends (overview figure of the paper):

        A = union over f in F of {f - (W-1)/2, ..., f + (W-1)/2}
    """
    if window is None:
        return focus.any(1, keepdim=True).expand_as(focus)
    if window == 1:
        return focus
    return F.max_pool1d(focus[:, None].float(), window, stride=1, padding=window // 2)[:, 0] > 0


def block_summaries(keys: Float[Tensor, "g t d"], *, block: int, units: bool) -> Float[Tensor, "g u d"]:
    """Mean keys of the whole blocks of `keys`, in float32; with `units` one mean for each `UNIT` tokens of a block."""
    whole = keys[:, : keys.shape[1] // block * block]
    if not whole.numel():  # a prompt shorter than a block is all ragged tail
        return whole.float()
    return block_means(whole[None], block=min(UNIT, block) if units else block)[0]


def block_relevance(
    query: Float[Tensor, "h f d"], summaries: Float[Tensor, "g u d"], *, aggregate: Aggregate, per_block: int
) -> Float[Tensor, " n"]:
    """Relevance of prompt blocks, of `per_block` consecutive summaries each, to the focus queries.

    The paper has the focus queries look up one key for each block, and does not say how rows and heads are combined.
    ``softmax`` (ours) lets no row drown the others; ``mean`` is that of the dot products; ``max`` is over rows:

        rel_j = mean_h mean_f softmax_j(<q_f^h, s_j^h> / sqrt(d))
    """
    rows = query.reshape(summaries.shape[0], -1, query.shape[-1]).to(summaries.dtype) / query.shape[-1] ** 0.5
    dots = (rows @ summaries.mT).view(query.shape[0], query.shape[1], -1)
    if aggregate == "softmax":
        score = dots.softmax(-1).mean((0, 1))
    else:
        by_row = dots.mean(0)
        score = by_row.amax(0) if aggregate == "max" else by_row.mean(0)
    if per_block == 1:
        return score
    return F.pad(score, (0, -score.numel() % per_block), value=-torch.inf).view(-1, per_block).amax(1)


def kept_blocks(prompt: int, block: int, keep: float, floor: int) -> int:
    """Whole blocks that are read of a prompt: ``ceil(keep * blocks)``, and as many as `floor` tokens need."""
    blocks = prompt // block
    return min(blocks, max(ceil(keep * blocks), ceil(floor / block)))


def top(score: Float[Tensor, " n"] | Int[Tensor, " n"], count: int) -> Int[Tensor, " k"]:
    """Indices of the `count` largest scores (all, where there are fewer), the largest first."""
    return score.topk(min(count, len(score))).indices


def prompt_tokens(
    selected: Int[Tensor, " k"], sinks: Int[Tensor, " s"], *, prompt: int, block: int
) -> Int[Tensor, " t"]:
    """Prompt positions that sparse layers read, ascending: selected blocks, sinks and the ragged tail (``I_P``)."""
    blocks = prompt // block
    kept = torch.zeros(prompt, dtype=torch.bool, device=selected.device)
    kept[: blocks * block].view(blocks, block)[selected] = True
    kept[blocks * block :] = True
    kept[sinks] = True
    return kept.nonzero()[:, 0]
