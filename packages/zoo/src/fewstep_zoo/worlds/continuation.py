"""Continuing clips chunk by chunk with a causal model, for measures and sample grids."""

from __future__ import annotations

from typing import Any

import torch
from fewstep.applied import Applied
from fewstep.families import wan_causal
from fewstep.families.chunk_cache import ChunkCache
from fewstep.families.wan_stream import StreamOptions, denoised, normal
from fewstep.flow import Latent
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def continued(
    network: Any,
    given: Latent,
    cond: Float[Tensor, "b t d"],
    frames: int,
    options: StreamOptions,
    generator: torch.Generator,
) -> Latent:
    """Latents of `frames` frames, the first of which are `given`.

    Args:
        network: a ``WanTransformer3DModel``; it is made causal for this call only.
        given: first chunks, perhaps none of them: ``[B, C, 0, H, W]``.
        cond: prompt embeddings.
        frames: of the result, a multiple of the chunk.
        options: noise levels, chunk and cache.
        generator: of the noise.
    """
    size, cache, device = options.chunk, ChunkCache(options.policy), network.device
    given, cond = given.to(device, network.dtype), cond.to(device, network.dtype)
    chunks = list(given.split(size, 2)) if given.shape[2] else []
    with Applied() as undo:
        wan_causal.make_causal(network, undo)
        for number in range(frames // size):
            if number >= len(chunks):
                noise = normal((*given.shape[:2], size, *given.shape[3:]), generator, device)
                chunks.append(denoised(network, noise, cond, cache, options, generator))
            cache = wan_causal.commit(network, chunks[number], cond, cache)
    return torch.cat(chunks, 2)
