"""`CausalDistillation`: recipes that distil a bidirectional teacher into a causal few-step student with a KV cache."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from fewstep import families
from fewstep.applied import Applied
from fewstep.data.images import sample_grid
from fewstep.errors import FewstepError, UnsupportedModelError
from fewstep.families.chunk_cache import CachePolicy
from fewstep.loaders import load
from fewstep.students.few_steps import replace_weights
from fewstep.students.wan_files import read
from fewstep.train import adapters
from fewstep.train.chunk_noise import FreshNoise
from fewstep.train.chunk_rollout import CausalStudent, ChunkPlan, roll
from fewstep.train.distillation import architecture, lower
from fewstep.train.objective import MetaData, Objective
from fewstep.train.parallel import World
from fewstep.train.prompts import embedded, read_prompts
from fewstep.train.recipe import Job
from fewstep.train.roles import Role, Roles
from fewstep.train.student_recipe import StudentRecipe
from torch import nn

from .method import Salt


@dataclass(frozen=True, kw_only=True)
class CausalDistillation(StudentRecipe):
    """Distillation into a causal student, from up to three models; methods override `causal_objective`."""

    student_class: ClassVar[type[Salt]] = Salt
    """Method that runs the student."""
    student_start: str
    """Pipeline that the student starts from: a causal model, in the names of its bidirectional class."""
    student_weights: Path | None = None
    """Weights that take the place of those of `student_start`: safetensors, or a checkpoint like ``ode_init.pt``."""
    student_part: Literal["generator", "generator_ema"] = "generator"
    """Weights of such a checkpoint: as they are, or their average over training."""
    critic_start: str | None = None
    """Pipeline that the critic starts from; None copies the teacher."""
    chunk: int = 3
    """Latent frames of a chunk."""
    window: int | None = None
    """Latent frames that a chunk attends to, itself included; None: all."""
    sink: int = 0
    """First latent frames that stay in the window."""
    eta: float = 1.0
    """Between the student's steps: 1 fresh noise, 0 Euler."""
    recompute_chunks: bool = True
    """Compute each chunk's exit step again in the backward pass: the memory of one chunk, one more forward."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.plan  # noqa: B018  # wrong values are answered at once

    @property
    def plan(self) -> ChunkPlan:
        """Chunks and cache."""
        policy = CachePolicy(window=self.window, sink=self.sink)
        return ChunkPlan(chunk=self.chunk, policy=policy, recompute=self.recompute_chunks)

    def method(self) -> Salt:
        chunks = {"chunk": self.chunk, "window": self.window, "sink": self.sink, "eta": self.eta}
        size = self.frames, self.height, self.width
        return self.student_class(steps=self.sampling_grid.raw, shift=self.shift, size=size, **chunks)

    def check_sizes(self, frames: int, blocks: int) -> None:
        """Refuse settings that do not fit the models, before anything is made of them.

        Args:
            frames: latent frames of the teacher's clip.
            blocks: of the teacher.

        Raises:
            ValueError: the frames do not divide into chunks.
        """
        self.plan.first_trained(frames)

    def causal_objective(self, roles: Roles, pipe: Any = None) -> Objective:
        """Objective of this run.

        Args:
            roles: the student's network was made causal.
            pipe: the student's pipeline; None in a dry run.
        """
        raise NotImplementedError(f"{type(self).__name__} says no objective")

    def build(self, world: World) -> Job:
        lines = read_prompts(self.prompts)
        pipe, other = load(self.student_start).model, load(self.teacher).model
        family = families.denoiser(pipe)
        shape = family.architecture(pipe).latent(self.frames, self.height, self.width)
        expected = families.denoiser(other).architecture(other)
        if expected.latent(self.frames, self.height, self.width) != shape:
            raise UnsupportedModelError(f"{self.student_start} and {self.teacher} have latents of different shapes")
        self.check_sizes(shape[1], expected.blocks)
        self._start(family, family.check(pipe))
        teacher = family.check(other)
        critic = family.check(load(self.critic_start).model) if self.critic_start else copy.deepcopy(teacher)
        roles = self._three_roles(family.check(pipe), critic, teacher)
        negative = family.NEGATIVE if self.negative is None else self.negative
        data = embedded(pipe, self.student_start, lines, negative, tokens=self.tokens, shape=shape, world=world)
        return Job(objective=self.causal_objective(roles, pipe), data=data, pipe=pipe)

    def _start(self, family: Any, student: nn.Module) -> None:
        """Give the student the weights that it starts from.

        Raises:
            FewstepError: it would start from a bidirectional model.
            BadFileError: the weights cannot be read or do not fit.
        """
        if self.student_weights is not None:
            values = read(self.student_weights, self.student_part).values(student, 1.0, self.student_weights)
            replace_weights(Applied(), student, values)
        elif self.student_start in family.KNOWN:
            raise FewstepError(
                f"{self.student_start} is bidirectional: name a causal start with --student-weights (ode_init.pt or "
                "causal_ode.pt of the official releases, or safetensors) or --student-start"
            )

    def skeleton(self) -> Job:
        sizes = architecture(self.student_start)
        shape = sizes.latent(self.frames, self.height, self.width)
        self.check_sizes(shape[1], architecture(self.teacher).blocks)
        names = (self.student_start, self.critic_start or self.teacher, self.teacher)
        roles = self._three_roles(*(architecture(name).meta_network() for name in names))
        data = MetaData(shape, cond=(self.tokens, sizes.text_width), uncond=True)
        return Job(objective=self.causal_objective(roles), data=data)

    def _three_roles(self, student: nn.Module, critic: nn.Module, teacher: nn.Module) -> Roles:
        """The student made causal, critic and teacher bidirectional; adapters are trained on networks of their own."""
        families.causal(student).make_causal(student, Applied())
        trained = {"student": student, "critic": critic}
        if self.lora_rank:
            targets = self.lora_targets or families.of(teacher).LORA_TARGETS
            for name, network in trained.items():
                lower(network, self.precision)
                how = {"rank": self.lora_rank, "alpha": self.lora_alpha, "targets": targets, "seed": self.seed}
                adapters.add(network, (name,), **how)
        else:
            for network in trained.values():
                network.requires_grad_(True)
        lower(teacher.requires_grad_(False), self.precision)
        roles = {name: Role(network, name if self.lora_rank else None) for name, network in trained.items()}
        return Roles(**roles, teacher=Role(teacher))

    def sample_grid(self, job: Job) -> Any:
        data: Any = job.data
        role = job.objective.roles.student
        device = next(role.network.parameters()).device
        generator = torch.Generator().manual_seed(self.seed)
        start = torch.randn(self.show, *data.shape, generator=generator).to(device)
        cond, exit = data.take(range(self.show)).to(device), len(self.sampling_grid) - 1
        noise = FreshNoise(self.eta, generator)
        latents = roll(CausalStudent(role), self.plan, self.sampling_grid, cond, start, exit, noise, grad=False).x
        videos = families.of(job.pipe).decode(job.pipe, latents)
        return sample_grid(videos, scale=max(1, 64 // videos.shape[-2]))
