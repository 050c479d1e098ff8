"""Lengths of a causal video: frames that divide into chunks, and positions that the rotary table has."""

from __future__ import annotations

import math
from typing import Any

from .chunk_cache import CachePolicy


def chunk_count(pipe: Any, frames: int, chunk: int) -> int:
    """Number of chunks of `chunk` latent frames in a video of `frames` frames.

    Raises:
        ValueError: they do not divide; the message names the nearest counts that do.
    """
    factor = pipe.vae_scale_factor_temporal
    first, more = factor * (chunk - 1) + 1, factor * chunk
    chunks, rest = divmod(frames - first, more)
    if frames >= first and not rest:
        return chunks + 1
    below, above = first + chunks * more, first + (chunks + 1) * more
    nearest = f"the nearest counts are {below} and {above}" if frames > first else f"the smallest count is {first}"
    raise ValueError(f"{frames} frames do not divide into chunks of {chunk} latent frames: {nearest}")


def chunks_for(pipe: Any, frames: int, chunk: int) -> int:
    """Smallest number of chunks of `chunk` latent frames that have at least `frames` frames."""
    factor = 1 if pipe.vae is None else pipe.vae_scale_factor_temporal
    first = factor * (chunk - 1) + 1
    return 1 + math.ceil(max(0, frames - first) / (factor * chunk))


def longest(pipe: Any, policy: CachePolicy) -> int | None:
    """Latent frames that have positions; None where positions move with the window."""
    moving = policy.relative and policy.window is not None
    return None if moving else pipe.transformer.config.rope_max_seq_len


def check_positions(pipe: Any, latent_frames: int, policy: CachePolicy) -> None:
    """Find out before the work whether a video has a position for each frame.

    Raises:
        ValueError: it grows beyond the rotary table; windows with relative positions do not.
    """
    most = pipe.transformer.config.rope_max_seq_len
    moving = policy.relative and policy.window is not None
    if (needed := policy.window if moving else latent_frames) > most:  # type: ignore[operator]
        cure = "a smaller window" if moving else "a window with relative positions"
        raise ValueError(f"{needed} latent frames need more positions than the {most} of this model: use {cure}")
