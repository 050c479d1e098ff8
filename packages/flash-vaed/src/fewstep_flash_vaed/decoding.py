"""Decoding of a Wan VAE by another decoder: whole clips, streams of one clip, and the decoders at their newest."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from fewstep.applied import Applied
from fewstep.families.wan_vae import Clip
from torch import Tensor

from .decoder import WanDecoder, exact_decoder
from .layers import Memory

DecoderFor = Callable[[Tensor], WanDecoder]
"""Gives the decoder at its newest: on the device and in the dtype of these latents, with the VAE's present weights."""


class ClipStream:
    """Decoding of one clip chunk by chunk; the frames are those of the whole clip, whatever the chunks.

    ::

        stream = applied.stream()
        frames = stream.push(latents[:, :, :3])      # 1 + s_t (3 - 1) frames at first, then s_t for each latent
        stream.close()
    """

    def __init__(self, decoder_for: DecoderFor) -> None:
        self.decoder_for = decoder_for
        self.memory: Memory = {}
        self.shape: tuple[int, ...] | None = None
        self.closed = False

    @torch.no_grad()
    def push(self, latents: Clip) -> Clip:
        """Frames ``[B, 3, F, H, W]`` of the next latents, not normalised, from -1 to 1.

        Raises:
            ValueError: the stream is closed, or the latents have another size than the ones before.
        """
        if self.closed:
            raise ValueError("this stream is closed: start another one for another clip")
        shape = (latents.shape[0], *latents.shape[3:])
        if self.shape not in (None, shape):
            raise ValueError(f"this stream decodes latents [b, z, t, h, w] with b, h, w = {self.shape}, found {shape}")
        frames = self.decoder_for(latents)(latents, self.memory).clamp(-1, 1)
        self.shape = shape
        return frames

    def close(self) -> None:
        """Forget the clip. Calling it again does nothing."""
        self.memory.clear()
        self.closed = True


class DecodingApplied(Applied):
    """Undo stack of both methods here; starts streams while it is applied."""

    decoder_for: DecoderFor

    def stream(self) -> ClipStream:
        """Start a stream of one clip; streams do not know of each other."""
        return ClipStream(self.decoder_for)

    def redirect(self, vae: Any, decoder_for: DecoderFor, chunk: int) -> DecodingApplied:
        """Let `vae` decode with this decoder, `chunk` latents at once (0: all), and hand the stack to the caller."""
        for name in ("_decode", "tiled_decode"):
            self.set(vae, name, partial(_decode_whole, name, vae, decoder_for, chunk))
        applied = self.pop_all()
        applied.decoder_for = decoder_for
        return applied


class SharedDecoder:
    """The exact decoder on a VAE's own weights, made anew when they are other tensors than before."""

    def __init__(self, vae: Any) -> None:
        self.vae, self.known = vae, (self._weights(vae), exact_decoder(vae))

    def __call__(self, latents: Tensor) -> WanDecoder:
        """Return the decoder; moves, casts and loaded state dicts of the VAE have reached it."""
        weights, (seen, decoder) = self._weights(self.vae), self.known
        if len(weights) != len(seen) or any(a is not b for a, b in zip(weights, seen, strict=True)):
            decoder = exact_decoder(self.vae)
            self.known = weights, decoder
        return decoder

    @staticmethod
    def _weights(vae: Any) -> list[Tensor]:
        return [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]


class StudentDecoder:
    """A student beside the VAE, whose state dict and files stay its own; a copy goes where latents come from."""

    def __init__(self, student: WanDecoder) -> None:
        self.student = self.latest = student.eval().requires_grad_(False)

    def __call__(self, latents: Tensor) -> WanDecoder:
        """Return the student on the device and in the dtype of `latents`."""
        decoder = self.latest
        weight = next(decoder.parameters())
        if (weight.device, weight.dtype) != (latents.device, latents.dtype):
            decoder = self.latest = copy.deepcopy(self.student).to(latents.device, latents.dtype)
        return decoder


students: WeakKeyDictionary[Any, WanDecoder] = WeakKeyDictionary()
"""The student that is applied to a VAE."""


def student_of(vae: Any) -> WanDecoder | None:
    """The student that decodes in the place of this VAE's own decoder, if one is applied."""
    return students.get(vae)


class _WholeClip:
    """An ``AutoencoderKLWan`` as its own ``_decode`` and ``tiled_decode`` see it while they decode a whole clip.

    They loop over frames. Here the clip is one frame, whose channels are those of all frames: what they do besides
    (tiles, blending, clamping) stays theirs.
    """

    _feat_map = None

    def __init__(self, vae: Any, decoder: WanDecoder, chunk: int, channels: int) -> None:
        self.vae, self.whole, self.chunk, self.channels = vae, decoder, chunk, channels

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vae, name)

    def tiled_decode(self, folded: Tensor, return_dict: bool = True) -> Any:
        return type(self.vae).tiled_decode(self, folded, return_dict)

    def clear_cache(self) -> None:
        """Do nothing: memory is this call's."""

    def post_quant_conv(self, folded: Tensor) -> Tensor:
        """Do nothing: the decoder has its own."""
        return folded

    def decoder(self, folded: Tensor, **_: Any) -> Clip:
        """Pixels of a whole clip or tile, `chunk` latent frames at once."""
        latents = rearrange(folded, "b (z t) 1 h w -> b z t h w", z=self.channels)
        if not self.chunk:
            return self.whole(latents)
        memory: Memory = {}
        return torch.cat([self.whole(part, memory) for part in latents.split(self.chunk, 2)], 2)


def _decode_whole(name: str, vae: Any, decoder_for: DecoderFor, chunk: int, z: Clip, return_dict: bool = True) -> Any:
    """Take the place of ``vae._decode`` and ``vae.tiled_decode``, here `name`."""
    clip = _WholeClip(vae, decoder_for(z), chunk, z.shape[1])
    return getattr(type(vae), name)(clip, rearrange(z, "b z t h w -> b (z t) 1 h w"), return_dict)
