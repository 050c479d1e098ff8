"""Training recipes of causal students: Salt and Self Forcing on the worlds of the zoo, and official ones for Wan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from fewstep import families
from fewstep.flow import StepGrid, even_steps
from fewstep.train.chunk_noise import ReferenceNoise
from fewstep.train.extra import ExtraLoss
from fewstep.train.objective import Objective
from fewstep.train.optim import AdamW
from fewstep.train.roles import Roles
from fewstep.train.staged import Staged

from .alignment import AlignmentKind, Features, make_alignment
from .causal_distillation import CausalDistillation
from .causal_losses import ChunkAlignmentLoss
from .consistency import SemigroupTarget, SemigroupWeight
from .losses import SemigroupLoss
from .method import Salt, SelfForcing
from .objective import ImageLatent, SaltObjective
from .steps import StepMix, TripleSampler

WORLDS_PROMPTS = Path(__file__).with_name("prompts") / "worlds.txt"
"""Prompts of panning worlds: every direction and speed, with one or two digits."""


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Settings that change once in a run (``warmup_steps`` and ``target_...`` of the official code)."""

    after: int = 0
    """Critic updates before the change; 0 for never."""
    lists: tuple[int, ...] = ()
    """Numbers of steps from then on, all as often; empty keeps those before."""
    segments: int = 0
    """Segments of the semigroup loss from then on; 0 keeps those before."""
    frames: int = 0
    """Latent frames of a rollout from then on, of which the last ones are trained; 0 keeps the clip's."""
    alignment: float = -1.0
    """Weight of the alignment from then on; -1 keeps that before."""


@dataclass(frozen=True, kw_only=True)
class SaltRecipe(CausalDistillation):
    """Salt (arXiv:2604.03118) on a causal student; one list without extra losses is Self Forcing."""

    count: Literal["student", "critic"] = "critic"
    guidance: float = 4.0
    """Scale w of the teacher's guidance, v_u + w (v_c - v_u); official codes write it as 3 and add it to v_c."""
    raw_steps: tuple[int, ...] = (1000, 750, 500, 250)
    """Steps that the student is saved and shown with, before the shift; rollouts of `lists` train them."""
    lists: tuple[int, ...] = (8, 4, 2)
    """Numbers of steps that rollouts are made with, evenly spaced before the shift."""
    probabilities: tuple[float, ...] = (0.4, 0.4, 0.2)
    """One for each list."""
    semigroup: float = 0.2
    """Scale of the semigroup loss of rollouts over the densest list; 0 leaves it out."""
    segments: int = 4
    """Segments of that list whose boundaries are ends of composed steps."""
    semigroup_weight: SemigroupWeight = "one-minus-s"
    """Weight of a triple of levels: 1 - s, or one."""
    semigroup_target: SemigroupTarget = "latent"
    """Compare end points, or the mean velocities to them."""
    semigroup_until: int = 0
    """Critic updates after which the semigroup loss ends (``scfm_disable_step`` in the official code); 0 for never."""
    alignment: float = 0.1
    """Scale of the alignment of few-step rollouts with denser ones; 0 leaves it out."""
    alignment_after: int = 1000
    """Critic updates before alignment begins."""
    alignment_kind: AlignmentKind = "trd"
    """Distance to the denser rollout."""
    alignment_margin: float = 0.1
    """Differences of token relations up to it count as none."""
    alignment_block: int = 20
    """Block of the teacher, from 0, after which its tokens are compared."""
    alignment_pairs: tuple[tuple[int, int], ...] = ((2, 4),)
    """Numbers of steps of a rollout and of the denser one that it is aligned with; the paper adds (4, 8)."""
    reference_noise: ReferenceNoise = "independent"
    """Noise of the denser rollout: its own, or aligned with that of the rollout."""
    share_exit_input: bool = False
    """Compare at the same noisy input, so that only the caches differ."""
    curriculum: Curriculum = Curriculum()
    """Settings that change later in the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settings()  # wrong values are answered at once
        trained = {step for grid in self.mix().grids for step in grid.raw}
        if not set(self.raw_steps) <= trained:
            raise ValueError(f"steps of use {self.raw_steps} must be among those of training {sorted(trained)[::-1]}")

    def check_sizes(self, frames: int, blocks: int) -> None:
        """See `CausalDistillation.check_sizes`; here too for what changes later in the run.

        Raises:
            ValueError: a rollout does not divide into chunks or is shorter than the clip, or there is no such block.
        """
        super().check_sizes(frames, blocks)
        if self.curriculum.frames:
            self._check_longer(self.curriculum.frames, frames)
        aligns = any("alignment" in how["extra"] for how in self._settings().values())
        if aligns and self.alignment_kind != "mse" and not 0 <= self.alignment_block < blocks:
            raise ValueError(
                f"the teacher has no block {self.alignment_block} for the alignment: it has {blocks}, from block 0 on"
            )

    def _check_longer(self, frames: int, clip: int) -> None:
        if frames < clip or frames % self.chunk:
            raise ValueError(
                f"{frames} frames of the curriculum: a rollout has at least the {clip} latent frames of the clip, in "
                f"chunks of {self.chunk}"
            )
        if clip == self.chunk < frames:
            raise ValueError(
                f"a clip of one chunk cannot be the end of {frames} frames: its first chunk is not trained"
            )

    def causal_objective(self, roles: Roles, pipe: Any = None) -> Objective:
        stages = {
            since: SaltObjective(**{**self.shared(roles), **how}, plan=self.plan, image_latent=_image_latent(pipe))
            for since, how in self._settings().items()
        }
        return stages[0] if len(stages) == 1 else Staged(stages)

    def _settings(self) -> dict[int, dict[str, Any]]:
        """Arguments of the objective, by the step from which they hold."""
        change, now = self.curriculum, self
        later = [self.steps_of(change.after)] if change.after else []
        later += [self.steps_of(self.semigroup_until)] if self.semigroup_until else []
        settings = {}
        for since in sorted({0, *later}):
            if change.after and since >= self.steps_of(change.after):
                now = self._changed()
            over = self.semigroup_until and since >= self.steps_of(self.semigroup_until)
            frames = change.frames or None if now is not self else None
            settings[since] = {"mix": now.mix(), "extra": now.extra(semigroup=not over), "frames": frames}
        return settings

    def _changed(self) -> SaltRecipe:
        change = self.curriculum
        lists = change.lists or self.lists
        return replace(
            self,
            lists=lists,
            probabilities=tuple(1 / len(lists) for _ in lists) if change.lists else self.probabilities,
            segments=change.segments or self.segments,
            alignment=self.alignment if change.alignment < 0 else change.alignment,
            curriculum=Curriculum(),
        )

    def steps_of(self, updates: int) -> int:
        """Steps of the schedule before which the critic had so many updates."""
        return updates if self.count == "critic" else -(-updates // self.critic_updates)

    def mix(self) -> StepMix:
        """Step lists of the rollouts, for both players."""
        return StepMix(tuple(StepGrid(even_steps(number), self.shift) for number in self.lists), self.probabilities)

    def extra(self, *, semigroup: bool = True) -> dict[str, ExtraLoss]:
        """Losses beside that of DMD2."""
        losses: dict[str, ExtraLoss] = {}
        if self.semigroup and semigroup:
            sampler = TripleSampler(max(self.mix().grids, key=len), self.segments)
            how = {"weight": self.semigroup_weight, "target": self.semigroup_target}
            losses["semigroup"] = SemigroupLoss(scale=self.semigroup, sampler=sampler, **how)
        if self.alignment:
            losses["alignment"] = self._alignment_loss()  # type: ignore[assignment]  # samples here have chunks
        return losses

    def _alignment_loss(self) -> ChunkAlignmentLoss:
        features = Features(block=self.alignment_block, score_time=self.score_time)
        return ChunkAlignmentLoss(
            scale=self.alignment,
            alignment=make_alignment(self.alignment_kind, features=features, margin=self.alignment_margin),
            mix=self.mix(),
            start=self.steps_of(self.alignment_after),
            pairs=self.alignment_pairs,
            noise=self.reference_noise,
            share_exit_input=self.share_exit_input,
        )


def _image_latent(pipe: Any) -> ImageLatent:
    if pipe is None:  # a plan
        return lambda latents: latents[:, :, -1:]
    return partial(families.denoiser(pipe).image_latent, pipe)


@dataclass(frozen=True, kw_only=True)
class SelfForcingRecipe(SaltRecipe):
    """Self Forcing (arXiv:2506.08009): one step list and no extra losses."""

    student_class: ClassVar[type[Salt]] = SelfForcing
    lists: tuple[int, ...] = (4,)
    """Numbers of steps that rollouts are made with, evenly spaced before the shift."""
    probabilities: tuple[float, ...] = (1.0,)
    """One for each list."""
    semigroup: float = 0.0
    """Scale of the semigroup loss of rollouts over the densest list; 0 leaves it out."""
    alignment: float = 0.0
    """Scale of the alignment of few-step rollouts with denser ones; 0 leaves it out."""


WORLDS: dict[str, Any] = {
    "teacher": "worlds-wan",
    "student_start": "worlds-causal-wan",
    "prompts": WORLDS_PROMPTS,
    "negative": "",
    "tokens": 16,
    "frames": 81,
    "height": 64,
    "width": 64,
    "guidance": 2.0,
    "steps": 1000,
    "batch": 8,
    "student": AdamW(lr=2e-5),
    "critic": AdamW(lr=2e-5),
    "ema": 0.99,
    "ema_from": 40,
    "alignment_after": 200,
    "alignment_block": 3,
    "save_every": 100,
    "sample_every": 500,
}
"""Fields that all arms on panning worlds share: 21 latent frames of 8 by 8, 16 tokens each."""


def salt_worlds() -> SaltRecipe:
    """Salt on panning worlds: mixed lists, self-consistency and alignment."""
    return SaltRecipe(**WORLDS)


def self_forcing_worlds() -> SelfForcingRecipe:
    """Self Forcing with four steps on panning worlds."""
    return SelfForcingRecipe(**WORLDS)


def self_forcing_8_worlds() -> SelfForcingRecipe:
    """Self Forcing with eight steps; ``--semigroup 0.2`` is self-consistency alone."""
    return SelfForcingRecipe(**WORLDS, lists=(8,))


def mixed_worlds() -> SaltRecipe:
    """Mixed lists alone; ``--semigroup 0.2`` adds self-consistency."""
    return SaltRecipe(**WORLDS, semigroup=0.0, alignment=0.0)


WAN: dict[str, Any] = {
    "teacher": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "critic_start": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "student_start": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "prompts": Path("prompts.txt"),
    "steps": 3000,
    "batch": 1,
    "accumulate": 8,  # 64 on eight cards
    "student": AdamW(lr=2e-6, betas=(0.0, 0.999)),
    "critic": AdamW(lr=4e-7, betas=(0.0, 0.999)),
    "ema": 0.99,
    "ema_from": 40,  # updates of the student: 200 of the critic
    "precision": "bfloat16",
    "recompute": True,
}
"""Fields of the official recipes; the releases name no length."""


def salt_wan_1_3b() -> SaltRecipe:
    """The official recipe on a start of Self Forcing, given by ``--student-start``."""
    return SaltRecipe(**WAN)


def salt_wan_1_3b_causal_forcing() -> SaltRecipe:
    """The official recipe on a start of Causal Forcing."""
    return replace(salt_wan_1_3b(), alignment_after=700, reference_noise="aligned-b")


def salt_wan_1_3b_longlive() -> SaltRecipe:
    """The official recipe on a start for LongLive: a window of 12 frames with a sink of 3; raw weights are kept."""
    window = {"window": 12, "sink": 3}
    return replace(salt_wan_1_3b(), alignment_after=1200, reference_noise="aligned-b", ema=0.0, **window)


def self_forcing_wan_1_3b() -> SelfForcingRecipe:
    """Self Forcing of Wan2.1-T2V-1.3B, the baseline."""
    return SelfForcingRecipe(**WAN)
