"""``fewstep bench exact-decode --task clip-distilling``: students that differ in one thing, trained alike."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from fewstep.bench.task import Outcome
from fewstep.contract import Loaded
from fewstep.data import clips as clip_data
from fewstep.errors import FewstepError
from fewstep.families import wan_vae
from fewstep.train.loop import Loop
from fewstep.train.parallel import World
from fewstep.train.run import place
from torch import Tensor

from .decoder import of_vae, spec_of
from .fit import Prune, preset
from .loss import psnr, sharpness
from .pruning_task import once
from .recipes import Distil

Held = list[tuple[Tensor, Tensor]]
"""Latents of held-out crops, and the crops."""


def students(config: Any, prune: Prune) -> dict[str, dict[str, Any]]:
    """Fields of the recipe by name of the student; ``pruned`` is the usual one."""
    stages = zip(preset(config)[1], spec_of(config).stages, strict=True)
    wider = tuple(min(2 * width, stage.inside) for width, stage in stages)
    return {
        "pruned": {"prune": prune},
        "wider": {"prune": replace(prune, widths=wider)},
        "random": {"prune": prune, "start": "random"},
        "sliced": {"prune": replace(prune, recovery="slice")},
        "pixels": {"prune": prune, "features": False},
    }


@dataclass(frozen=True, kw_only=True)
class ClipDistilling:
    """Train students of one decoder and compare them on held-out crops; each repeat has other data and weights.

    ``pruned``: as by ``fewstep train flash-vaed-clips``; ``wider``: twice the channels of narrowed stages; ``random``:
    its shape without its weights; ``sliced``: pruned without regression; ``pixels``: without the feature term.
    """

    arms: tuple[str, ...] = ("pruned", "wider", "random", "sliced", "pixels")
    """Students to train."""
    steps: int = 120
    """Of each."""
    marks: int = 3
    """How often each is scored, the last time at the end."""
    batch: int = 4
    """Crops of a step."""
    calibration: int = 24
    """Crops for pruning."""
    crops: int = 12
    """Held-out crops for scoring."""
    frames: int = 9
    """Of each held-out crop."""
    size: int = 64
    """Pixels of each crop, each way."""

    def __post_init__(self) -> None:
        if (
            min(self.steps, self.marks, self.batch, self.calibration, self.crops, self.frames, self.size) < 1
            or self.marks > self.steps
        ):
            raise ValueError(f"all numbers must be positive and marks at most steps, found {self}")

    def small(self) -> ClipDistilling:
        """Two students, two steps."""
        return replace(self, arms=self.arms[:2], steps=2, marks=1, batch=2, calibration=2, crops=1, size=16)

    @once
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """PSNR to teacher and clip, and sharpness, by student and step."""
        vae, seed = wan_vae.check(loaded.model), generator.initial_seed()
        known = students(vae.config, Prune(clips=self.calibration, size=self.size))
        if unknown := set(self.arms) - set(known):
            raise FewstepError(f"no student is called {min(unknown)!r}; there are {', '.join(known)}")
        held = self._held(vae, generator)
        quality: dict[str, float] = {}
        for name in self.arms:
            recipe = Distil(steps=self.steps, batch=self.batch, size=self.size, seed=seed, **known[name])
            torch.manual_seed(seed)
            loop = Loop(recipe, recipe.of(vae), World(device=vae.device))
            place(recipe, loop.roles, loop.world)
            for step in range(self.steps):
                loop.step(step)
                if (step + 1) * self.marks % self.steps < self.marks:
                    quality |= {f"{what}_{name}_{step + 1}": found for what, found in _score(loop, vae, held).items()}
        return Outcome(seconds={}, quality=quality, evidence=torch.tensor(list(quality.values())))

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Nothing: with the method and without it the same students are trained."""
        return {}

    @torch.no_grad()
    def _held(self, vae: Any, generator: torch.Generator) -> Held:
        clips = list(clip_data.clips("test").values())
        _, crops = clip_data.Crops(clips=clips, frames=self.frames, size=self.size).draw(self.crops, generator)
        return [
            (wan_vae.encode(vae, clip[None].to(vae.device, vae.dtype)), clip[None].to(vae.device)) for clip in crops
        ]


@torch.no_grad()
def _score(loop: Loop, vae: Any, held: Held) -> dict[str, float]:
    """Means over held-out crops, of the averaged weights."""
    student, teacher = loop.roles.main.network, of_vae(vae)
    found: dict[str, list[float]] = {"psnr_to_teacher": [], "psnr": [], "sharpness": []}
    with loop.ema.applied() if loop.ema else contextlib.nullcontext():
        for latents, clip in held:
            pixels = student(latents).float()
            found["psnr_to_teacher"].append(psnr(pixels, teacher(latents).float()))
            found["psnr"].append(psnr(pixels, clip))
            found["sharpness"].append(sharpness(pixels, clip))
    return {name: sum(scores) / len(scores) for name, scores in found.items()}
