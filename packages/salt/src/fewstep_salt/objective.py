"""`SaltObjective`: distribution matching on videos that a causal student makes with the cache of its own chunks.

    L_G = L_DMD + 0.2 L_SC [list = L8] + 0.1 L_TRD [list = L2, exit > 0, step >= warm-up]      (arXiv 2604.03118)

The last two are `extra` losses. Baselines are settings: Self Forcing (arXiv 2506.08009) is one list and no extra loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from fewstep.flow import Latent, StepGrid
from fewstep.train.chunk_noise import FreshNoise
from fewstep.train.chunk_rollout import CausalStudent, ChunkPlan, ChunkRollout, roll
from fewstep.train.dmd2 import DMD2
from fewstep.train.objective import Batch, UpdateSchedule
from fewstep.train.rollout import draw_exit
from torch import Tensor

from .steps import StepMix

ImageLatent = Callable[[Latent], Latent]
"""The last frame of a video, from all latents up to it, as the first latent of another video."""


@dataclass(eq=False, kw_only=True)
class CausalRollouts(DMD2):
    """Samples that a causal student makes chunk by chunk, over a step list that is drawn for each.

    A mix-in of distillation objectives: ``class Mine(CausalRollouts, SomeDMD2): ...``. Student and critic draw step
    list and exit step each for themselves, the same on all ranks and for all chunks. Teacher and critic see whole
    clips.

    Raises:
        ValueError: videos are longer than the teacher's clip, but there is no `image_latent`.
        UnsupportedModelError: the student's network makes no videos chunk by chunk.
    """

    plan: ChunkPlan = field(default_factory=ChunkPlan)
    """Chunks and cache of the student."""
    mix: StepMix = field(default_factory=StepMix)
    """Step lists, of which every rollout draws one."""
    eta: float = 1.0
    """Between the steps: 1 fresh noise, as in all released recipes, 0 Euler."""
    frames: int | None = None
    """Latent frames of a rollout, of which the last ones, as many as the teacher's clip has, are trained; None: all."""
    image_latent: ImageLatent | None = None
    """Makes the first trained frame of a longer video what the teacher knows as a first frame: an image."""

    def __post_init__(self) -> None:
        if checks := getattr(super(), "__post_init__", None):  # those of the objective that this is mixed into
            checks()
        if self.frames is not None and self.image_latent is None:
            raise ValueError("videos longer than the teacher's clip need an image_latent for the clip's first frame")
        self.causal = CausalStudent(self.roles.student)

    def rollout(self, batch: Batch, *, grad: bool, first: int = 0) -> ChunkRollout:
        """A video of the student, or the trained end of a longer one."""
        grid, exit = self.draw(batch, first)
        trained = batch.shape[1]
        frames = max(trained, self.frames or 0)
        plan = replace(self.plan, grad_frames=trained) if frames > trained else self.plan
        noise = FreshNoise(self.eta, batch.generator)
        made = roll(self.causal, plan, grid, batch.cond, batch.normal(frames), exit, noise, grad=grad)
        batch.rollouts.append(self._with_image(made))
        return batch.rollouts[-1]  # type: ignore[return-value]

    def draw(self, batch: Batch, first: int = 0) -> tuple[StepGrid, int]:
        """A step list and the index of an exit step in it, from `first` on; both the same on all ranks."""
        number = batch.micro if self.exit_index == "micro-batch" else 0
        grid = self.mix.draw(batch.shared, number)
        exit = draw_exit(grid, batch.shared, first, number)
        batch.metrics.update(exit=float(exit), steps=float(len(grid)))
        return grid, exit

    def _with_image(self, made: ChunkRollout) -> ChunkRollout:
        """The video with its first trained frame encoded again, as an image, where others came before."""
        if not made.first_trained or self.image_latent is None:
            return made
        with torch.no_grad():
            until = torch.cat([chunk.x0 for chunk in made.chunks], 2)[:, :, : made.first_trained + 1]
            image = self.image_latent(until).to(made.x)
        return replace(made, x=torch.cat([image, made.x[:, :, 1:]], 2))


@dataclass(eq=False, kw_only=True)
class SaltObjective(CausalRollouts):
    """Salt (arXiv 2604.03118) with DMD2 as its matching loss; its own losses are among `extra`."""

    schedule: UpdateSchedule = field(default_factory=lambda: UpdateSchedule(count="critic"))
    """A step is one update of the critic; every fifth also updates the student, before it."""

    def student_losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """DMD2 on the clip; the first chunk of a clip from a longer video only tells what came before."""
        sample = self.rollout(batch, grad=True)
        return {"dmd": self.matching_loss(sample.x, batch, given=sample.given)}
