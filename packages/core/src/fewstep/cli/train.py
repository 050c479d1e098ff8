"""``fewstep train``: a recipe, with every field of it as a flag; started, resumed, or only planned."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .. import plugins
from ..bench.settings import available_cores, check_threads
from ..cards import Card
from .flags import Group, parse
from .options import chosen_device, named, quiet
from .progress import following
from .table import show_table

if TYPE_CHECKING:
    from ..train.dry_run import DryRun
    from ..train.recipe import Recipe


def _share() -> int:
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Folder, device and threads of a run."""

    out: Path | None = None
    """Folder of the run: settings, log, checkpoints, sample grids and the student; default: runs/NAME."""
    resume: bool = False
    """Go on from the last checkpoint in that folder; without one, start."""
    dry_run: bool = False
    """Only say what the run would take: parameters, memory, steps, and what is saved. Nothing is loaded."""
    device: str = "auto"
    """cpu or cuda; auto takes the GPU where there is one. Under torchrun each process takes its own."""
    threads: int = field(default_factory=_share)
    """CPU threads of torch in each process; default: the cores divided by the processes here."""


def train(words: list[str]) -> int:
    """Run a recipe; Ctrl-C finishes the step and saves."""
    quiet(words)
    card, words = named("train", words, "recipe", plugins.recipes())
    groups = [Group("run", TrainOptions), recipe_group(card)]
    options, recipe = parse(f"fewstep train {card.name}", card.summary, words, groups)
    if options.dry_run:
        from ..train.dry_run import dry_run

        show_dry_run(card.name, recipe, dry_run(recipe))
        return 0
    return _run(card.name, recipe, options)


def recipe_group(card: Card) -> Group:
    """The flags of a recipe: of its class, or of the object that a function of no arguments returns."""
    target = card.load()
    if inspect.isclass(target):
        return Group(card.name, target, "recipe")
    return Group(card.name, type(target()), "recipe", default=target)


def _run(name: str, recipe: Recipe, options: TrainOptions) -> int:
    import torch

    from ..train import parallel
    from ..train.run import Run

    check_threads(options.threads)
    torch.set_num_threads(options.threads)
    world = parallel.join(chosen_device(options.device))
    try:
        with following(f"training {name}") as reporter:
            Run(recipe, options.out or Path("runs") / name, world, reporter, name).train(resume=options.resume)
    finally:
        parallel.leave()
    return 0


def show_dry_run(name: str, recipe: Recipe, estimate: DryRun) -> None:
    """Print the estimates of a dry run as tables."""
    from ..train.dry_run import RANKS

    roles = [(role, f"{total:,}", f"{trained:,}") for role, (total, trained) in estimate.roles.items()]
    show_table(f"parameters of {name}", ("role", "all", "trained"), roles)
    lines = [
        (variant.name, *(f"{variant.bytes(ranks) / 2**30:.1f} GiB" for ranks in RANKS)) for variant in estimate.variants
    ]
    title = f"memory of each rank, micro-batch of {recipe.batch}, {recipe.precision}"
    show_table(title, ("what is trained", *(f"{ranks} GPU{'s' * (ranks > 1)}" for ranks in RANKS)), lines)
    for line in _summary(recipe, estimate):
        print(line)


def _summary(recipe: Recipe, estimate: DryRun) -> list[str]:
    latent = "x".join(map(str, estimate.latent))
    saved = f"every {recipe.save_every} steps a checkpoint (the last two are kept)"
    grids = f", every {recipe.sample_every} a sample grid" if recipe.sample_every else ""
    return [
        f"latents of {latent}; {recipe.batch} x {recipe.accumulate} samples a phase on each rank",
        f"{recipe.steps} steps; {saved}{grids}",
        f"at the end: {recipe.what_is_saved()}",
        "memory counts weights, gradients, moments, averages and activations; not text encoder and VAE",
    ]
