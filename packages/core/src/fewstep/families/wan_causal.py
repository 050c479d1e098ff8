"""Causal Wan: a stock ``WanTransformer3DModel`` that makes a video chunk by chunk, with a KV cache.

Nothing of the model is copied or subclassed: its ``attn1`` processors and the forward of its ``rope`` are swapped (see
`chunk_attention`), and outside of the functions here it is the stock model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..applied import Applied
from ..errors import UnsupportedModelError
from ..flow import TRAIN_STEPS, Latent
from .chunk_attention import CausalProcessor, CausalRope, ChunkCall, calling
from .chunk_cache import ChunkCache
from .wan import Architecture


def check(model: Any) -> Any:
    """Return the transformer of a Wan text-to-video model, or the transformer itself.

    Raises:
        UnsupportedModelError: it is another model, or one with image conditions.
    """
    from diffusers import WanTransformer3DModel

    network = getattr(model, "transformer", model)
    if not isinstance(network, WanTransformer3DModel):
        raise UnsupportedModelError(
            f"{type(network).__name__} is no WanTransformer3DModel, so it cannot be made causal; load a Wan pipeline"
        )
    if network.config.added_kv_proj_dim is not None or network.config.patch_size[0] != 1:
        raise UnsupportedModelError(
            "this WanTransformer3DModel has image conditions or patches over time; text-to-video models are supported"
        )
    return network


def make_causal(network: Any, undo: Applied) -> None:
    """Let `velocity` and `commit` work on `network` until `undo` is removed; other calls of it stay as they are."""
    for number, block in enumerate(network.blocks):
        attention = block.attn1
        undo.callback(attention.set_processor, attention.processor)
        attention.set_processor(CausalProcessor(number, attention.processor))
    undo.set(network.rope, "forward", CausalRope(network.rope))


def check_causal(network: Any) -> None:
    """Refuse a transformer that would answer without looking at its cache.

    Raises:
        UnsupportedModelError: it was not made causal, or the change was undone.
    """
    if not isinstance(network.rope.forward, CausalRope):
        raise UnsupportedModelError(
            f"this {type(network).__name__} is not causal now: use it while a causal method is applied"
        )


def velocity(
    network: Any, noisy: Latent, sigma: Float[Tensor, " b"], cond: Float[Tensor, "b t d"], cache: ChunkCache
) -> Latent:
    """Velocity of the chunk that follows what is in `cache`, which stays as it is.

    Args:
        network: made causal by `make_causal`.
        noisy: the chunk at noise level `sigma`.
        sigma: noise levels in [0, 1], one for each sample.
        cond: prompt embeddings.
        cache: the finished chunks.

    Raises:
        ValueError: the chunk does not fit into the window, or begins beyond the rotary table (see `CachePolicy`).
    """
    frames = torch.arange(noisy.shape[2]) + _start(cache, noisy.shape[2])
    return _forward(network, noisy, TRAIN_STEPS * sigma, cond, ChunkCall(frames, cache))


@torch.no_grad()
def commit(network: Any, clean: Latent, cond: Float[Tensor, "b t d"], cache: ChunkCache) -> ChunkCache:
    """The cache after a finished chunk: its keys and values are those of a pass at noise level 0."""
    frames = torch.arange(clean.shape[2]) + _start(cache, clean.shape[2])
    call = ChunkCall(frames, cache, recorded=[])
    _forward(network, clean, torch.zeros(clean.shape[0], device=clean.device), cond, call)
    assert call.recorded is not None
    return cache.commit(call.recorded, clean.shape[2])


def recache(
    network: Any, chunks: Sequence[tuple[int, Latent]], cond: Float[Tensor, "b t d"], cache: ChunkCache
) -> ChunkCache:
    """Rebuild a cache under another prompt, from the finished chunks that it still sees; positions stay.

    Args:
        network: made causal by `make_causal`.
        chunks: first frame and latents of each chunk in the sink or the window, in order.
        cond: the new prompt's embeddings.
        cache: the one to rebuild; it stays as it is.
    """
    fresh = cache.reset()
    for start, latents in chunks:
        fresh = commit(network, latents, cond, replace(fresh, frames=start))
    return replace(fresh, frames=cache.frames)


def teacher_forced(
    network: Any,
    clean: Latent,
    noisy: Latent,
    sigma: Float[Tensor, "b f"],
    cond: Float[Tensor, "b t d"],
    chunk: int,
) -> Latent:
    """Velocity of all chunks in one pass, each given the clean chunks before it: what a cache computes, without one.

    Args:
        network: made causal by `make_causal`.
        clean: the video.
        noisy: its noisy version, chunk by chunk independent.
        sigma: noise level of each frame.
        cond: prompt embeddings.
        chunk: frames of a chunk.

    Raises:
        ValueError: the frames do not divide into chunks.
    """
    count = clean.shape[2]
    if count % chunk:
        raise ValueError(f"{count} frames do not divide into chunks of {chunk}")
    _, height, width = network.config.patch_size
    tokens = (clean.shape[3] // height) * (clean.shape[4] // width)
    frames = torch.arange(count).repeat(2)
    times = torch.cat([torch.zeros_like(sigma), TRAIN_STEPS * sigma], 1).repeat_interleave(tokens, 1)
    call = ChunkCall(frames, forced=count // chunk)
    both = _forward(network, torch.cat([clean, noisy], 2), times, cond, call)
    return both[:, :, count:]


def teacher_forcing_mask(count: int, chunk: int) -> Bool[Tensor, "2f 2f"]:
    """Frames of ``[clean; noisy]`` that each frame attends to.

    A clean frame sees clean frames up to its own chunk; a noisy one sees clean frames before its chunk, and its chunk.
    """
    of = torch.arange(count) // chunk
    earlier, same = of[:, None] > of[None], of[:, None] == of[None]
    return torch.cat([torch.cat([earlier | same, torch.zeros_like(same)], 1), torch.cat([earlier, same], 1)])


def cache_bytes(architecture: Architecture, latent: Sequence[int], *, frames: int, bytes_each: int = 2) -> int:
    """Bytes of keys and values of `frames` frames of a latent ``(C, F, H, W)``, from the configuration alone."""
    config = architecture.transformer
    width = config["num_attention_heads"] * config["attention_head_dim"]
    _, rows, columns = config.get("patch_size", (1, 2, 2))
    tokens = (latent[2] // rows) * (latent[3] // columns)
    return 2 * config["num_layers"] * frames * tokens * width * bytes_each


def _start(cache: ChunkCache, chunk: int) -> int:
    return cache.visible(chunk) if cache.policy.relative else cache.frames


def _forward(network: Any, video: Latent, timestep: Tensor, cond: Tensor, call: ChunkCall) -> Latent:
    check_causal(network)
    with calling(call):
        return network(hidden_states=video, timestep=timestep, encoder_hidden_states=cond, return_dict=False)[0]
