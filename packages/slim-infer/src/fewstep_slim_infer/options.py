"""The kinds of value that SlimInfer's fields take, and their arithmetic."""

from __future__ import annotations

from typing import Literal

Keep = int | float
"""A budget: tokens (int), or a share of the prompt (float in (0, 1])."""
Score = Literal["dot", "abs_dot", "unit_softmax"]
Revive = Literal["survivors", "recompute"]


def spread(keep: Keep | tuple[Keep, ...], segments: int) -> tuple[Keep, ...]:
    """One budget for each segment: a single one is halved from entry to entry; 1.0 keeps everything everywhere."""
    if isinstance(keep, tuple):
        return keep
    if keep == 1.0 and isinstance(keep, float):
        return (keep,) * segments
    return tuple(keep >> s if isinstance(keep, int) else keep / 2**s for s in range(segments))


def blocks_kept(keep: Keep, tokens: int, block: int, forced: int) -> int:
    """Block budget of a segment for a prompt of `tokens`; never fewer than the forced blocks and one that is chosen."""
    budget = int(keep * tokens) if isinstance(keep, float) else keep
    if budget >= tokens:
        return -(-tokens // block)
    return max(budget // block, forced + 1)
