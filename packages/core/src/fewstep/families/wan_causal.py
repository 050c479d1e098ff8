"""Causal Wan: a stock ``WanTransformer3DModel`` that makes a video chunk by chunk, with a KV cache.

Nothing of the model is copied or subclassed. Its ``attn1`` processors and its ``rope`` are swapped; what one call needs
(frame positions, cache, mask) travels with the rotary embedding, which the model hands from its ``forward`` to every
attention layer. So a call belongs to its thread, two videos may be made in turn on one model, and activation
checkpointing recomputes with the right cache. Outside of `velocity` and `commit` the model is the stock one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..applied import Applied
from ..errors import UnsupportedModelError
from ..flow import TRAIN_STEPS, Latent
from .chunk_cache import ChunkCache, States
from .wan import Architecture

Angles = tuple[Float[Tensor, "1 n 1 d"], Float[Tensor, "1 n 1 d"]]
"""Cosines and sines of the rotation of each token."""


@dataclass
class ChunkCall:
    """What one call of the network asks of its attention layers."""

    frames: Int[Tensor, " f"]
    """Position of each frame of the input."""
    cache: ChunkCache = ChunkCache()
    mask: Bool[Tensor, "q k"] | None = None
    """Tokens that each token of the input attends to; None: all, and everything in `cache`."""
    recorded: list[tuple[States, States]] | None = None
    """Keys and values of each layer, where the call is to be committed."""


class _Rotation(tuple):
    """Rotary embedding of a call, ``(cos, sin)``, that carries the call and the rotation of the cached keys."""

    call: ChunkCall
    past: Angles | None


_current: ContextVar[ChunkCall | None] = ContextVar("fewstep_chunk_call", default=None)


def check(model: Any) -> nn.Module:
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


def make_causal(network: nn.Module, undo: Applied) -> None:
    """Let `velocity` and `commit` work on `network` until `undo` is removed; other calls of it stay as they are."""
    for number, block in enumerate(network.blocks):
        attention = block.attn1
        undo.callback(attention.set_processor, attention.processor)
        attention.set_processor(_CausalProcessor(number, attention.processor))
    undo.set(network.rope, "forward", _CausalRope(network.rope))


def velocity(
    network: nn.Module, noisy: Latent, sigma: Float[Tensor, " b"], cond: Float[Tensor, "b t d"], cache: ChunkCache
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
    frames = torch.arange(noisy.shape[2], device=noisy.device) + _start(cache, noisy.shape[2])
    return _forward(network, noisy, TRAIN_STEPS * sigma, cond, ChunkCall(frames, cache))


@torch.no_grad()
def commit(network: nn.Module, clean: Latent, cond: Float[Tensor, "b t d"], cache: ChunkCache) -> ChunkCache:
    """The cache after a finished chunk: its keys and values are those of a pass at noise level 0."""
    frames = torch.arange(clean.shape[2], device=clean.device) + _start(cache, clean.shape[2])
    call = ChunkCall(frames, cache, recorded=[])
    _forward(network, clean, torch.zeros(clean.shape[0], device=clean.device), cond, call)
    assert call.recorded is not None
    return cache.commit(call.recorded, clean.shape[2])


def recache(
    network: nn.Module, chunks: Sequence[tuple[int, Latent]], cond: Float[Tensor, "b t d"], cache: ChunkCache
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
    network: nn.Module,
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
    frames = torch.arange(count, device=clean.device).repeat(2)
    times = torch.cat([torch.zeros_like(sigma), TRAIN_STEPS * sigma], 1).repeat_interleave(tokens, 1)
    mask = teacher_forcing_mask(count, chunk).to(clean.device)
    mask = mask.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    both = _forward(network, torch.cat([clean, noisy], 2), times, cond, ChunkCall(frames, mask=mask))
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


def _forward(network: nn.Module, video: Latent, timestep: Tensor, cond: Tensor, call: ChunkCall) -> Latent:
    with _calling(call):
        return network(hidden_states=video, timestep=timestep, encoder_hidden_states=cond, return_dict=False)[0]


@contextmanager
def _calling(call: ChunkCall) -> Iterator[None]:
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)


@dataclass
class _CausalRope:
    """Forward of the rotary embedding: tables at the positions of the current call, or the stock one outside of one."""

    rope: nn.Module
    stock: Any = field(init=False)

    def __post_init__(self) -> None:
        self.stock = self.rope.forward

    def __call__(self, hidden_states: Tensor) -> Any:
        call = _current.get()
        if call is None:
            return self.stock(hidden_states)
        _, height, width = self.rope.patch_size
        grid = hidden_states.shape[3] // height, hidden_states.shape[4] // width
        rotation = _Rotation(angles(self.rope, call.frames, *grid))
        rotation.call, rotation.past = call, None
        if call.cache.policy.relative:
            past = torch.arange(call.cache.visible(len(call.frames)), device=hidden_states.device)
            rotation.past = angles(self.rope, past, *grid)
        return rotation


def angles(rope: nn.Module, frames: Int[Tensor, " f"], height: int, width: int) -> Angles:
    """Rotation of the tokens of frames at the given positions, on a grid of `height` by `width` tokens.

    Raises:
        ValueError: a position lies beyond the table.
    """
    if len(frames) and int(frames.max()) >= rope.max_seq_len:
        raise ValueError(
            f"frame {int(frames.max())} lies beyond the {rope.max_seq_len} positions of this model's rotary table: "
            "for longer videos use a cache with a window and relative positions"
        )
    sizes = [rope.t_dim, rope.h_dim, rope.w_dim]
    shape = len(frames), height, width
    rotation = []
    for table in (rope.freqs_cos, rope.freqs_sin):
        time, rows, columns = table.split(sizes, 1)
        parts = [time[frames][:, None, None], rows[:height][None, :, None], columns[:width][None, None]]
        rotation.append(torch.cat([part.expand(*shape, -1) for part in parts], -1).reshape(1, -1, 1, sum(sizes)))
    return rotation[0], rotation[1]


def rotate(states: States, rotation: Sequence[Tensor]) -> States:
    """Rotate pairs of neighbouring channels, as Wan does."""
    cos, sin = rotation[0][..., 0::2], rotation[1][..., 1::2]
    first, second = states.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], -1)
    return turned.flatten(-2).type_as(states)


@dataclass
class _CausalProcessor:
    """Self-attention of one layer: to the cached chunks and the current one, or the stock one outside of a call."""

    layer: int
    stock: Any

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        if not isinstance(rotary_emb, _Rotation):
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        call = rotary_emb.call
        query, keys, values = (part.unflatten(2, (attn.heads, -1)) for part in _projections(attn, hidden_states))
        query, raw = rotate(query, rotary_emb), keys
        keys = rotate(keys, rotary_emb)
        stored = raw if call.cache.policy.relative else keys
        if call.recorded is not None:
            call.recorded.append((stored, values))
        keys, values = self._with_past(rotary_emb, keys, values)
        heads_first = (part.transpose(1, 2) for part in (query, keys, values))
        out = F.scaled_dot_product_attention(*heads_first, attn_mask=call.mask).transpose(1, 2)
        return attn.to_out[1](attn.to_out[0](out.flatten(2).type_as(query)))

    def _with_past(self, rotation: _Rotation, keys: States, values: States) -> tuple[States, States]:
        call, chunk = rotation.call, len(rotation.call.frames)
        fresh = keys.shape[1]
        keys, values = call.cache.attend(self.layer, keys, values, chunk)
        if rotation.past is None or keys.shape[1] == fresh:
            return keys, values
        past = rotate(keys[:, :-fresh], rotation.past)
        return torch.cat([past, keys[:, -fresh:]], 1), values


def _projections(attn: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if attn.fused_projections:
        query, keys, values = attn.to_qkv(hidden_states).chunk(3, -1)
    else:
        query, keys, values = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
    return attn.norm_q(query), attn.norm_k(keys), values
