"""Training on the device: a run that goes on bit for bit, and a step of SGMD against one of DMD2 5:1."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from fewstep.bench.record import ArmConfig, Measurement, make_rows
from fewstep.bench.rows import DENSE, append
from fewstep.families import wan
from fewstep.train.loop import Loop
from fewstep.train.optim import AdamW
from fewstep.train.parallel import World
from fewstep.train.recipe import Job
from fewstep.train.reporter import NullReporter
from fewstep.train.roles import lora_roles
from fewstep.train.run import Run, place
from fewstep.train.sharding import recompute
from fewstep_sgmd.recipes import DIGITS_PROMPTS, DMD2StudentRecipe, SGMDRecipe
from safetensors.torch import load_file
from torch import Tensor

from .bench import Bench
from .build import network
from .video import now, wan_sizes


def resume(bench: Bench) -> None:
    """Four steps at once against two and two more: the weights of the student are the same, bit for bit.

    With deterministic algorithms: sums of gradients on a GPU have no fixed order otherwise, with and without a pause.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FEWSTEP_CACHE"] = str(folder / "cache")
        pipe = wan.tiny_pipeline()
        pipe.save_pretrained(folder / "teacher")
        sizes = {"frames": 5, "height": 32, "width": 32, "tokens": 6, "batch": 2, "save_every": 2}
        recipe = SGMDRecipe(
            teacher=str(folder / "teacher"),
            prompts=DIGITS_PROMPTS,
            negative="",
            steps=4,
            student=AdamW(lr=1e-3),
            **sizes,
        )
        whole = _student(recipe, folder / "whole", bench)
        _student(dataclasses.replace(recipe, steps=2), folder / "parts", bench)
        parts = _student(recipe, folder / "parts", bench, resume=True)
    moved = max((whole[key] - value.cpu()).abs().max().item() for key, value in pipe.transformer.state_dict().items())
    bench.check("training changes the weights", None if moved > 0 else "they are as before")
    other = [key for key, value in whole.items() if not torch.equal(value, parts[key])]
    bench.check("a resumed run gives the same weights", f"{len(other)} differ, {other[0]} first" if other else None)


def _student(recipe: SGMDRecipe, out: Path, bench: Bench, *, resume: bool = False) -> dict[str, Tensor]:
    trained = Run(recipe, out, World(device=torch.device(bench.device)), NullReporter()).train(resume=resume)
    return load_file(trained / "transformer" / "diffusion_pytorch_model.safetensors")


class RandomPrompts:
    """Random conditions in place of prompts."""

    def __init__(self, shape: tuple[int, ...], tokens: int, width: int) -> None:
        self.shape, self.cond = shape, (tokens, width)
        self.uncond = torch.zeros(1, *self.cond)

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, None]:
        """Conditions ``[size, T, d]``, and no latents."""
        return torch.randn(size, *self.cond, generator=generator), None


def sgmd(bench: Bench) -> None:
    """LoRA of rank 64 on Wan 1.3B at 480p, fewer frames than a run has: time by step and by phase, and memory."""
    from diffusers import WanTransformer3DModel

    sizes = wan_sizes(bench)
    video = bench.pick((21, 480, 832), (5, 32, 32))
    tokens, device = bench.pick(512, 6), torch.device(bench.device)
    common: dict[str, Any] = {"teacher": "", "prompts": Path(), "batch": 1, "precision": "bfloat16", "lora_rank": 64}
    steps: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    for label, recipe in {DENSE: DMD2StudentRecipe(**common), "sgmd": SGMDRecipe(**common)}.items():
        made = network(bench, lambda: WanTransformer3DModel(**sizes.transformer))
        roles = lora_roles(made, rank=64, alpha=64.0, targets=wan.LORA_TARGETS)
        recompute(roles)
        data = RandomPrompts(sizes.latent(*video), tokens, sizes.text_width)
        place(recipe, roles, World(device=device))
        loop = Loop(recipe, Job(objective=recipe.objective(roles), data=data), World(device=device))
        steps[label] = []
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for step in range(bench.pick(3, 2)):
            began = now(device)
            loop.step(step)
            steps[label].append(now(device) - began)
        memory[label] = float(torch.cuda.max_memory_allocated()) if device.type == "cuda" else 0.0
        del made, roles, loop
    measured = {
        label: [
            Measurement(seconds={"step": s}, quality={}, counts={"peak_cuda_bytes": memory[label]}) for s in took[1:]
        ]
        for label, took in steps.items()
    }
    params = {"frames": video[0], "height": video[1], "width": video[2], "batch": 1, "lora_rank": 64, **bench.shared}
    model = bench.pick("wan-2.1-1.3b", "tiny-wan")
    head = {"task": "gpu-training-step", "model": model, "params": params, "run": bench.run()}
    rows = make_rows(head, {"sgmd": ArmConfig("sgmd", {})}, measured, "dmd2-5to1-bfloat16")
    append(rows, bench.out / "gpu-training-step.jsonl")
