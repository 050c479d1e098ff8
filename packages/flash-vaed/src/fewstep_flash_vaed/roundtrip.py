"""``fewstep run flash-vaed``: a user's video through the encoder, the teacher and the student, side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fewstep.contract import Loaded
from fewstep.data import clips as clip_data
from fewstep.data import video
from fewstep.errors import FewstepError
from fewstep.families import wan_vae
from torch import Tensor

from .install import Decoding, exact_decoding
from .loss import psnr, sharpness, ssim
from .method import ExactDecode

CHUNK = 2
"""Latent frames that are decoded at once, so that long videos fit."""


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """Encode a video, decode it twice, and write video, teacher and student beside each other."""

    input: Path
    """A video: MP4, AVI, WebM, GIF, ..."""
    output: Path
    """MP4 or GIF that is written: the video, the teacher's and the student's decoding from left to right."""
    frames: int = 97
    """Most frames that are read; cut to 1 more than a multiple of the VAE's temporal factor."""
    height: int = 0
    """Scale to so many rows first; 0 leaves the size, cut to a multiple of the VAE's spatial factor."""
    fps: float = 24.0
    """Frames a second of what is written."""

    def __post_init__(self) -> None:
        # what cannot be read or written is said before a model loads
        if self.frames < 1 or self.height < 0 or not self.fps > 0:
            raise ValueError(f"frames must be 1 or more, height 0 or more and fps positive, found {self}")
        video.check_writable(self.output)
        video.read(self.input, most=1)

    @torch.no_grad()
    def __call__(self, loaded: Loaded, method: Any) -> None:
        """Write the video and print what both decodings are worth."""
        vae = wan_vae.check(loaded.model)
        clip = self.clip(vae)
        latents = wan_vae.encode(vae, clip.to(vae.device, vae.dtype))
        with exact_decoding(vae, ExactDecode(), 0) as applied:
            teacher, before = streamed(applied, latents)
        with method.apply(vae) as applied:
            student, after = streamed(applied, latents)
        beside = torch.cat([clip, teacher, student], 4)
        video.write((beside[0].transpose(0, 1) + 1) / 2, self.output, fps=self.fps)
        print(f"{clip.shape[2]} frames of {clip.shape[4]}x{clip.shape[3]}; latents {list(latents.shape[1:])}")
        for name, pixels, seconds in (("teacher (exact)", teacher, before), (method.name, student, after)):
            print(f"{name}: {_facts(pixels, clip)}, {1e3 * seconds / clip.shape[2]:.1f} ms a frame")
        print(f"{method.name} against the teacher: PSNR {psnr(student, teacher):.2f} dB, {before / after:.1f}x as fast")
        print(f"wrote {self.output}: the video, the teacher, {method.name}")

    def clip(self, vae: Any) -> Tensor:
        """The video as ``[1, 3, F, H, W]`` of a size that the VAE takes.

        Raises:
            FewstepError: it is too small.
        """
        frames = video.read(self.input, most=self.frames)
        space, times = vae.spatial_compression_ratio, 2 ** sum(vae.temperal_downsample)
        if self.height:
            frames = clip_data.scaled(frames, self.height // space * space or space, space)
        count = 1 + (len(frames) - 1) // times * times
        tall, wide = (size // space * space for size in frames.shape[2:])
        if not tall or not wide:
            raise FewstepError(f"{self.input} is smaller than {space}x{space} pixels, one latent of this VAE")
        return clip_data.pixels(frames[:count, :, :tall, :wide]).transpose(0, 1)[None]


def streamed(applied: Decoding, latents: Tensor) -> tuple[Tensor, float]:
    """Frames on the CPU, and the seconds that decoding took."""
    stream, start = applied.stream(), time.perf_counter()
    frames = [stream.push(part).float().cpu() for part in latents.split(CHUNK, 2)]
    seconds = time.perf_counter() - start
    stream.close()
    return torch.cat(frames, 2), seconds


def _facts(found: Tensor, wanted: Tensor) -> str:
    return (
        f"PSNR {psnr(found, wanted):.2f} dB, SSIM {float(ssim(found, wanted)):.4f}, "
        f"sharpness {sharpness(found, wanted):.2f} of the video's"
    )
