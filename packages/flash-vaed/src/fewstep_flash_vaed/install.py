"""Put another decoder behind ``vae.decode`` and take it out again; encoding, slicing, tiling and configuration stay."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from fewstep.applied import Applied
from fewstep.method import Method
from torch import Tensor, nn

from .causal import Memory
from .decoder import Clip, WanDecoder, of_vae


class Decoding(Applied):
    """What `FlashVAED.apply` and `ExactDecode.apply` return: undoes it, and decodes streams meanwhile."""

    decoder: WanDecoder

    def stream(self) -> Stream:
        """A new stream of one clip; streams do not know of each other."""
        return Stream(self.decoder)


class Stream:
    """Decodes one clip chunk by chunk; the frames are those of the whole clip, whatever the chunks.

    ::

        stream = applied.stream()
        frames = stream.push(latents[:, :, :3])      # 1 + s_t (3 - 1) frames at first, then s_t for each latent
        stream.close()
    """

    def __init__(self, decoder: WanDecoder) -> None:
        self.decoder = decoder
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
        frames = self.decoder(latents, self.memory).clamp(-1, 1)
        self.shape = shape
        return frames

    def close(self) -> None:
        """Forget the clip. Calling it again does nothing."""
        self.memory.clear()
        self.closed = True


def exact_decoding(vae: Any, method: Method, chunk: int) -> Decoding:
    """Let `vae` decode with its own weights by the fastest exact formulation, `chunk` latents at once (0: all)."""
    with Decoding() as undo:
        undo.occupy(vae, method)
        decoder = of_vae(vae)  # on the very same weights, so that moves and casts of the VAE reach them
        return _redirected(undo, vae, decoder, chunk)


def student_decoding(vae: Any, method: Method, student: WanDecoder) -> Decoding:
    """Let `vae` decode with `student`, which takes the place of its decoder as a module and follows its moves."""
    with Decoding() as undo:
        undo.occupy(vae, method)
        teacher = vae.decoder
        undo.callback(_put_back, vae, teacher)
        vae.decoder = student.to(vae.device, vae.dtype).eval().requires_grad_(False)
        return _redirected(undo, vae, student, 0)


def _redirected(undo: Decoding, vae: Any, decoder: WanDecoder, chunk: int) -> Decoding:
    undo.set(vae, "_decode", partial(_decode, vae, decoder, chunk))
    undo.set(vae, "tiled_decode", partial(_tiled, vae, decoder, chunk))
    applied = undo.pop_all()
    applied.decoder = decoder
    return applied


def decode(decoder: WanDecoder, latents: Clip, chunk: int = 0) -> Clip:
    """Pixels of a whole clip, `chunk` latent frames at once (0: all)."""
    if not chunk or chunk >= latents.shape[2]:
        return decoder(latents)
    memory: Memory = {}
    return torch.cat([decoder(part, memory) for part in latents.split(chunk, 2)], 2)


def _put_back(vae: Any, teacher: nn.Module) -> None:
    weight = next(vae.quant_conv.parameters())  # the VAE may have been moved or cast meanwhile
    vae.decoder = teacher.to(weight.device, weight.dtype)


def _decode(vae: Any, decoder: WanDecoder, chunk: int, z: Clip, return_dict: bool = True) -> Any:
    """Like ``AutoencoderKLWan._decode``."""
    small = vae.tile_sample_min_height // vae.spatial_compression_ratio
    narrow = vae.tile_sample_min_width // vae.spatial_compression_ratio
    if vae.use_tiling and (z.shape[3] > small or z.shape[4] > narrow):
        return _tiled(vae, decoder, chunk, z, return_dict)
    return _output(decode(decoder, z, chunk), return_dict)


def _tiled(vae: Any, decoder: WanDecoder, chunk: int, z: Clip, return_dict: bool = True) -> Any:
    """Like ``AutoencoderKLWan.tiled_decode``: overlapping tiles, blended linearly."""
    ratio, tall, wide = vae.spatial_compression_ratio, vae.tile_sample_stride_height, vae.tile_sample_stride_width
    height, width = vae.tile_sample_min_height // ratio, vae.tile_sample_min_width // ratio
    rows = []
    for top in range(0, z.shape[3], tall // ratio):
        tiles = [z[..., top : top + height, left : left + width] for left in range(0, z.shape[4], wide // ratio)]
        rows.append([decode(decoder, tile, chunk) for tile in tiles])
    joined = torch.cat([torch.cat(row, -1) for row in _blended(vae, rows, tall, wide)], -2)
    return _output(joined[..., : z.shape[3] * ratio, : z.shape[4] * ratio], return_dict)


def _blended(vae: Any, rows: list[list[Tensor]], tall: int, wide: int) -> Iterator[list[Tensor]]:
    down, right = vae.tile_sample_min_height - tall, vae.tile_sample_min_width - wide
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            if i:
                tile = vae.blend_v(rows[i - 1][j], tile, down)
            if j:
                tile = vae.blend_h(row[j - 1], tile, right)
            row[j] = tile
        yield [tile[..., :tall, :wide] for tile in row]


def _output(pixels: Clip, return_dict: bool) -> Any:
    from diffusers.models.autoencoders.vae import DecoderOutput

    clamped = pixels.clamp(-1, 1)
    return DecoderOutput(sample=clamped) if return_dict else (clamped,)
