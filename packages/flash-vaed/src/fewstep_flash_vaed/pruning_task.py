"""``fewstep bench exact-decode --task clip-pruning``: every way to prune one decoder, before any distillation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args
from weakref import WeakKeyDictionary

import torch
from fewstep.bench.task import Outcome
from fewstep.contract import Loaded
from fewstep.data import clips as clip_data
from fewstep.errors import FewstepError
from fewstep.families import wan_vae
from torch import Tensor

from .decoder import WanDecoder, of_vae, spec_of
from .fit import preset
from .layers import Operator
from .loss import psnr
from .prune import Pruner, Recovery, prune
from .select import Score, Select

WAYS: tuple[tuple[Select, Score], ...] = (
    ("greedy", "cov"),
    ("greedy", "corr"),
    ("greedy", "act"),
    ("qr", "cov"),
    ("variance", "cov"),
    ("random", "cov"),
)


def once(run: Callable[[Any, Loaded, torch.Generator], Outcome]) -> Callable[[Any, Loaded, torch.Generator], Outcome]:
    """For tasks whose arms all do the same with a VAE's decoder: the second one gets what the first has found.

    Such a task gives no seconds: a speed-up would mean nothing, and neither does its gate.
    """
    known: WeakKeyDictionary[Any, dict[tuple[Any, int], Outcome]] = WeakKeyDictionary()

    @functools.wraps(run)
    def remembered(task: Any, loaded: Loaded, generator: torch.Generator) -> Outcome:
        vae = wan_vae.check(loaded.model)
        if isinstance(vae.decoder, WanDecoder):
            raise FewstepError("students of an unchanged decoder are compared: run this task with exact-decode")
        found, key = known.setdefault(vae, {}), (task, generator.initial_seed())
        if key not in found:
            found[key] = run(task, loaded, generator)
        return found[key]

    return remembered


@dataclass(frozen=True, kw_only=True)
class ClipPruning:
    """Prune on crops of real clips and compare with the teacher on held-out ones; each repeat has other crops."""

    widths: tuple[int, ...] = ()
    """Channels of each up-block, 0 for all. Default: as in ``fewstep fit flash-vaed``."""
    crops: int = 8
    """For calibration, and as many held out."""
    frames: int = 5
    """Of each crop."""
    size: int = 64
    """Pixels of each crop, each way."""

    def small(self) -> ClipPruning:
        """Two small crops."""
        return replace(self, crops=2, size=32)

    @once
    @torch.no_grad()
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """R^2 (mean over all points) by selection, and PSNR to the teacher by selection and recovery.

        The early stages stay dense, so that what is compared is the pruning alone.
        """
        vae = wan_vae.check(loaded.model)
        teacher = of_vae(vae)
        usual, widths = preset(vae.config)
        operators: tuple[Operator, ...] = tuple("frame" if operator == "frame" else "dense" for operator in usual)
        spec = spec_of(vae.config, operators, self.widths or widths)
        train, test = (self._latents(vae, split, generator) for split in ("train", "test"))
        wanted = [teacher(clip) for clip in test]
        quality: dict[str, float] = {}
        for select, score in WAYS:
            for recovery in get_args(Recovery):
                student = WanDecoder(spec).eval()
                pruner = Pruner(select=select, score=score, recovery=recovery, seed=generator.initial_seed())
                choices = prune(teacher, student, train, pruner)
                name = f"{select}_{score}"
                found = [psnr(student(clip), pixels) for clip, pixels in zip(test, wanted, strict=True)]
                quality[f"psnr_{name}_{recovery}"] = sum(found) / len(found)
                quality[f"r2_{name}"] = sum(choice.r2 for choice in choices) / len(choices)
                quality[f"r2_bound_{score}"] = sum(choice.bound for choice in choices) / len(choices)
        return Outcome(seconds={}, quality=quality, evidence=torch.tensor(list(quality.values())))

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Nothing: both arms prune the same decoder."""
        return {}

    def _latents(self, vae: object, split: clip_data.Split, generator: torch.Generator) -> list[Tensor]:
        clips = list(clip_data.clips(split).values())
        _, crops = clip_data.Crops(clips=clips, frames=self.frames, size=self.size).draw(self.crops, generator)
        return [wan_vae.encode(vae, clip[None]) for clip in crops]
