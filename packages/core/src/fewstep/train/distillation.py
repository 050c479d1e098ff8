"""Recipes that distil a flow-matching model into a few-step student, from prompts alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from .. import families, plugins
from ..data.images import sample_grid
from ..errors import BadFileError, FewstepError
from ..flow import ScoreTime, StepGrid
from ..loaders import load
from ..method import Method
from .dmd2 import DMD2
from .objective import MetaData, Objective, UpdateSchedule
from .optim import AdamW
from .parallel import World
from .prompts import embedded, read_prompts
from .recipe import Job, Recipe, free
from .roles import Roles, full_roles, lora_roles
from .rollout import ExitIndex, sample


@dataclass(frozen=True, kw_only=True)
class Distillation(Recipe):
    """Distillation of a teacher into student and critic that begin as its copies; methods override `objective`."""

    teacher: str
    """Pipeline to distil: a name from `fewstep list`, a local folder, or a hub id."""
    prompts: Path
    """Text file with one prompt on each line; embedded once and kept in the cache."""
    negative: str | None = None
    """Prompt that the teacher's guidance leads away from; None takes the one that its family was released with."""
    tokens: int = 512
    """Rows of a prompt embedding; the usual pipelines pad to 512."""
    frames: int = 81
    """Frames of a video."""
    height: int = 480
    """Pixels."""
    width: int = 832
    """Pixels."""
    raw_steps: tuple[int, ...] = (1000, 750, 500, 250)
    """Steps of the student before the shift."""
    shift: float = 5.0
    """Time shift of the student's steps and of the score times."""
    eta: float = 0.0
    """Between the student's steps: 0 Euler, 1 fresh noise."""
    score_low: float = 0.02
    """Lowest noise level at which critic and teacher are compared."""
    score_high: float = 0.98
    """Highest noise level at which critic and teacher are compared."""
    guidance: float = 3.0
    """Scale w of the teacher's guidance, v_u + w (v_c - v_u)."""
    critic_updates: int = 5
    """Critic updates for each student update."""
    count: Literal["student", "critic"] = "student"
    """Role whose updates a step counts."""
    exit_index: ExitIndex = "update"
    """One exit index for all micro-batches of an update, or for each its own (as in the official trainer of SGMD)."""
    student: AdamW = AdamW(lr=2e-6)
    """Optimiser of the student."""
    critic: AdamW = AdamW(lr=4e-7)
    """Optimiser of the critic."""
    lora_rank: int = 0
    """Train LoRA adapters of this rank on one base; 0 trains all weights of two copies."""
    lora_alpha: float = 64.0
    """Adapters are scaled by alpha / rank."""
    lora_targets: tuple[str, ...] = ()
    """Endings of the names of the layers that get adapters; empty takes those of the teacher's family."""
    show: int = free(4)
    """Prompts on a sample grid."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_rank < 0 or self.tokens < 1 or self.show < 1:
            raise ValueError("lora_rank must be 0 or more, tokens and show at least 1")
        self.grid, self.score_time, self.schedule  # noqa: B018  # wrong values are answered at once

    @property
    def grid(self) -> StepGrid:
        """Levels of the student."""
        return StepGrid(self.raw_steps, self.shift)

    @property
    def sampling_grid(self) -> StepGrid:
        """Levels that samples are shown and students saved with."""
        return self.grid

    @property
    def score_time(self) -> ScoreTime:
        """Levels of the comparison."""
        return ScoreTime(self.shift, self.score_low, self.score_high)

    @property
    def schedule(self) -> UpdateSchedule:
        """Order of the updates."""
        return UpdateSchedule(self.critic_updates, self.count)

    def objective(self, roles: Roles) -> Objective:
        """Objective of this run; DMD2 unless a method overrides it."""
        return DMD2(**self.shared(roles))

    def shared(self, roles: Roles) -> dict[str, Any]:
        """Arguments that every objective on these roles and levels is given."""
        return {
            "roles": roles,
            "grid": self.grid,
            "score_time": self.score_time,
            "guidance": self.guidance,
            "eta": self.eta,
            "schedule": self.schedule,
            "exit_index": self.exit_index,
        }

    def settings(self, world: World) -> dict[str, Any]:
        digest = hashlib.sha256("\n".join(read_prompts(self.prompts)).encode()).hexdigest()
        return {**super().settings(world), "prompts.sha256": digest[:16]}

    def optimisers(self) -> Mapping[str, AdamW]:
        return {"student": self.student, "critic": self.critic}

    def build(self, world: World) -> Job:
        lines = read_prompts(self.prompts)
        pipe = load(self.teacher).model
        family = families.denoiser(pipe)
        network = family.check(pipe)
        shape = family.architecture(pipe).latent(self.frames, self.height, self.width)
        negative = family.NEGATIVE if self.negative is None else self.negative
        data = embedded(pipe, self.teacher, lines, negative, tokens=self.tokens, shape=shape, world=world)
        return Job(objective=self.objective(self._roles(network)), data=data, pipe=pipe)

    def skeleton(self) -> Job:
        sizes = architecture(self.teacher)
        data = MetaData(
            sizes.latent(self.frames, self.height, self.width), cond=(self.tokens, sizes.text_width), uncond=True
        )
        return Job(objective=self.objective(self._roles(sizes.meta_network())), data=data)

    def _roles(self, network: nn.Module) -> Roles:
        """Make roles with trained weights in float32, and frozen ones in the precision of the recipe."""
        if self.lora_rank:
            lower(network, self.precision)
            rank, alpha = self.lora_rank, self.lora_alpha
            targets = self.lora_targets or families.of(network).LORA_TARGETS
            return lora_roles(network, rank=rank, alpha=alpha, targets=targets, seed=self.seed)
        roles = full_roles(network)
        lower(roles.teacher.network, self.precision)
        return roles

    def method(self) -> Method | None:
        raise FewstepError(f"{type(self).__name__} names no method that runs its students; packages like sgmd do")

    def sample_grid(self, job: Job) -> Any:
        data: Any = job.data
        device = next(job.objective.roles.student.network.parameters()).device
        cond = data.take(range(self.show)).to(device)
        start = torch.randn(self.show, *data.shape, generator=torch.Generator().manual_seed(self.seed)).to(device)
        latents = sample(job.objective.roles.student, self.sampling_grid, cond, start)
        videos = families.of(job.pipe).decode(job.pipe, latents)
        return sample_grid(videos, scale=max(1, 64 // videos.shape[-2]))

    def finish(self, job: Job, network: Any, folder: Path) -> None:
        """A pipeline folder, or with LoRA the adapter; both with the scheduler that runs the student's steps."""
        pipe = job.pipe
        scheduler = self.sampling_grid.scheduler(stochastic=self.eta == 1)
        if not self.lora_rank:
            pipe.transformer, pipe.scheduler = network, scheduler
            for part in (pipe, network, pipe.vae):
                if part is not None:
                    part.register_to_config(_name_or_path="")  # the folder of the teacher on this machine
            pipe.save_pretrained(folder, max_shard_size="1TB")  # one file for each network, whatever its size
            return
        from peft import get_peft_model_state_dict

        layers = {k: v.detach().cpu() for k, v in get_peft_model_state_dict(network, adapter_name="student").items()}
        config = network.peft_config["student"].to_dict()
        pipe.save_lora_weights(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=config)
        scheduler.save_pretrained(folder / "scheduler")

    def what_is_saved(self) -> str:
        if self.lora_rank:
            return "pytorch_lora_weights.safetensors for diffusers, and the scheduler with the student's steps"
        return "a diffusers pipeline folder: the student's transformer, and the scheduler with its steps"


@dataclass(frozen=True, kw_only=True)
class DMD2Recipe(Distillation):
    """DMD2: five critic updates for each student update."""


def architecture(name: str) -> families.Architecture:
    """Sizes of a model by hub id, local folder or loader, without downloading anything.

    Raises:
        FewstepError: its sizes are not known here.
    """
    known = {hub_id: sizes for family in families.denoisers() for hub_id, sizes in family.KNOWN.items()}
    if name in known:
        return known[name]
    index = Path(name).expanduser() / "model_index.json"
    if index.is_file():
        try:
            kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
        except (ValueError, TypeError, KeyError) as error:
            raise BadFileError(f"{index} is damaged: {error}") from error
        for family in families.denoisers():
            if families.BY_CLASS.get(kind) == family.__name__.rpartition(".")[2]:
                return family.architecture_of_folder(index.parent)
    if name in plugins.loaders():
        pipe = load(name).model
        return families.denoiser(pipe).architecture(pipe)
    raise FewstepError(f"the sizes of {name!r} are not known: a plan needs a local folder or one of {', '.join(known)}")


def lower(network: nn.Module, precision: str) -> None:
    """Cast weights to half precision, but not those that the model keeps in float32."""
    if precision == "float32":
        return
    keep = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    for name, weight in network.named_parameters():
        if not keep & set(name.split(".")):
            weight.data = weight.data.to(getattr(torch, precision))
