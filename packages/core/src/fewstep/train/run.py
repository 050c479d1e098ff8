"""One training run in one folder: started or resumed, logged, saved, interrupted, finished."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from contextlib import closing, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..errors import BadFileError, FewstepError
from . import parallel, sharding
from .checkpoint import Checkpoints, read_state
from .log import Log, Tracker
from .loop import Loop, LossError
from .parallel import World
from .recipe import Job, Recipe
from .reporter import NullReporter, Reporter, signals
from .roles import Roles

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Run:
    """A run of `recipe` in the folder `out`, from the beginning or from its last checkpoint.

    The folder holds ``run.json`` (all settings), ``log.jsonl``, ``checkpoints/``, ``samples/``, and at the end a folder
    with the name of the first role: ``student/``.
    """

    def __init__(self, recipe: Recipe, out: Path, world: World, reporter: Reporter, name: str = "") -> None:
        self.recipe, self.out, self.world = recipe, out, world
        self.reporter: Reporter = reporter if world.is_main else NullReporter()
        self.sharded = world.size > 1 and recipe.parallel == "shard"
        self.checkpoints = Checkpoints(out / "checkpoints", world, self.sharded)
        self.log = Log(out / "log.jsonl" if world.is_main else None)
        self.name = name or type(recipe).__name__
        self.seconds = 0.0

    def train(self, *, resume: bool = False) -> Path:
        """Train to the end and return the folder of the trained model.

        Raises:
            FewstepError: the folder holds another run, a checkpoint cannot be read or written, or the loss explodes.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when the step was finished and saved.
        """
        checkpoint = self._prepare(resume)
        tracker = Tracker(self.recipe.tracker if self.world.is_main else "none", self.name, self._fields())
        torch.manual_seed(self.recipe.seed)
        job = self.recipe.build(self.world)
        empty = self._place(job)
        loop = Loop(self.recipe, job, self.world)
        first = self._restore(loop, checkpoint)
        if self.world.is_main:
            self._describe()
        with closing(tracker), signals() as stop:
            for step in range(first, self.recipe.steps):
                self._step(loop, step, tracker)
                self._keep(loop, step + 1, stop)
        return self._finish(loop, empty)

    def _prepare(self, resume: bool) -> Path | None:
        """The checkpoint to go on from; nothing is changed before it is known to fit."""
        checkpoint = self.checkpoints.newest()
        if checkpoint and not resume:
            raise FewstepError(
                f"{self.out} holds a run ({checkpoint.name}): go on with --resume, or choose another --out"
            )
        if checkpoint:
            state = read_state(checkpoint)
            if missing := [name for name in ("settings", "step", "seconds", "updates") if name not in state]:
                raise BadFileError(f"the checkpoint {checkpoint} is damaged: its state lacks {', '.join(missing)}")
            saved, here = state["settings"], self.recipe.settings(self.world)
            changed = [key for key in sorted({*saved, *here}) if saved.get(key) != here.get(key)]
            if changed:
                listed = ", ".join(f"{key} {saved.get(key)} -> {here.get(key)}" for key in changed)
                raise FewstepError(f"{checkpoint} was made with other settings: {listed}; use those, or another --out")
        parallel.barrier()
        self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints.clean()
        return checkpoint

    def _place(self, job: Job) -> torch.nn.Module | None:
        """Put precision, recomputation and sharding into effect."""
        roles, dtype = job.objective.roles, DTYPES[self.recipe.precision]
        if self.recipe.recompute:
            sharding.recompute(roles)
        if self.sharded:
            empty = sharding.meta_copy(roles.main.network)
            sharding.shard(roles, self.world, dtype)
            return empty
        place(self.recipe, roles, self.world)
        return None

    def _restore(self, loop: Loop, checkpoint: Path | None) -> int:
        torch.manual_seed(self.recipe.seed + self.world.rank)
        done = 0
        if checkpoint:
            state = self.checkpoints.load(checkpoint, loop.tensors())
            done, self.seconds, loop.updates = state["step"], state["seconds"], state["updates"]
            self.reporter.say(f"going on from {checkpoint}")
        self.log.cut(done)
        return done

    def _step(self, loop: Loop, step: int, tracker: Tracker) -> None:
        began = time.perf_counter()
        try:
            metrics = loop.step(step)
        except LossError as error:
            kept = self.checkpoints.newest()
            raise FewstepError(
                f"{error}; " + (f"the last good checkpoint is {kept}" if kept else "none was saved")
            ) from error
        self.seconds += time.perf_counter() - began
        counters = {f"{name}/updates": count for name, count in loop.updates.items()}
        line = {"step": step + 1, "seconds": self.seconds, **counters, **metrics}
        self.log.write(line)
        tracker.write(line)
        self.reporter.step(step + 1, self.recipe.steps, metrics)

    def _keep(self, loop: Loop, done: int, stop: list[int]) -> None:
        stopped, last = parallel.any_rank(bool(stop)), done == self.recipe.steps
        if stopped or last or done % self.recipe.save_every == 0:
            state = {
                "step": done,
                "seconds": self.seconds,
                "updates": loop.updates,
                "settings": self.recipe.settings(self.world),
                "versions": {name: version(name) for name in ("fewstep-core", "torch")},
            }
            self.reporter.say(f"saved {self.checkpoints.save(done, loop.tensors(), state)}")
        if last or (self.recipe.sample_every and done % self.recipe.sample_every == 0):
            self._sample_grid(loop, done)
        if stopped and not last:
            raise KeyboardInterrupt

    def _sample_grid(self, loop: Loop, done: int) -> None:
        with torch.random.fork_rng(), loop.ema.applied() if loop.ema else nullcontext():
            image = self.recipe.sample_grid(loop.job)
        if image is not None and self.world.is_main:
            path = self.out / "samples" / f"step-{done:08d}.png"
            path.parent.mkdir(exist_ok=True)
            part = path.with_suffix(".part.png")
            image.save(part)
            os.replace(part, path)
            self.reporter.say(f"samples: {path}")

    def _finish(self, loop: Loop, empty: torch.nn.Module | None) -> Path:
        name = next(iter(loop.roles))
        with loop.ema.applied() if loop.ema else nullcontext():
            network: Any = loop.roles.main.network
            if empty is not None:
                network = sharding.gather_state(network, empty, self.world)
            if self.world.is_main:
                self._save(loop.job, network, name)
        parallel.barrier()
        self.reporter.say(f"the {name} is in {self.out / name}")
        return self.out / name

    def _save(self, job: Job, network: Any, name: str) -> None:
        final, part = self.out / name, self.out / f".{name}.part"
        try:
            shutil.rmtree(part, ignore_errors=True)
            self.recipe.finish(job, network, part)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(part, final)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            kept = self.checkpoints.newest()
            raise FewstepError(
                f"{final} cannot be written: {error}; {kept} is whole: make room and --resume"
            ) from error

    def _describe(self) -> None:
        text = json.dumps({"recipe": self.name, "processes": self.world.size, "fields": self._fields()}, indent=1)
        part = self.out / "run.json.part"
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, self.out / "run.json")

    def _fields(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self.recipe), default=str))


def place(recipe: Recipe, roles: Roles, world: World) -> None:
    """Put unsharded roles on the device, in the precision of the recipe."""
    dtype = DTYPES[recipe.precision]
    for network in roles.networks():
        network.to(world.device)
    for role in roles.values():
        role.autocast = None if dtype == torch.float32 else dtype
