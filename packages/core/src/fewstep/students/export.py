"""Formats of ``fewstep export`` for students: a diffusers folder, a LoRA, and the files of LightX2V and ComfyUI."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..data.files import write_text
from ..errors import FewstepError
from ..families import wan
from ..loaders import load
from . import lightx2v
from .wan import WanStudent
from .wan_files import native_tensors, peft_tensors, write
from .weights import StudentWeights, extract_lora

README = """# Few-step student

Network calls for a video: {steps}, without guidance. Plain diffusers, no other package needed.

```python
from diffusers import WanPipeline

pipe = WanPipeline.from_pretrained("this/folder")
pipe(prompt, num_inference_steps={steps}, guidance_scale=1.0)
```

The scheduler holds the student's own steps: timesteps {timesteps}.
"""


@dataclass(frozen=True, kw_only=True)
class DiffusersFolder:
    """A whole pipeline with the student's weights and steps, which diffusers loads without fewstep."""

    base: str
    """Pipeline that the student was made from: a name from `fewstep list`, a local folder, or a hub id."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of the weights that are written."""

    def __call__(self, method: WanStudent, folder: Path) -> list[str]:
        """Write the folder; returns notes for the user."""
        pipe = load(self.base, dtype=self.dtype).model
        with method.apply(pipe):
            pipe.save_pretrained(folder)
        timesteps = ", ".join(f"{timestep:.1f}" for timestep in method.grid.timesteps)
        write_text(folder / "README.md", README.format(steps=len(method.steps), timesteps=timesteps))
        return []


@dataclass(frozen=True, kw_only=True)
class PeftLora:
    """``pytorch_lora_weights.safetensors`` for ``pipe.load_lora_weights``, with any alpha folded in."""

    rank: int = 64
    """Rank of a LoRA that is extracted from full weights."""
    base: str = ""
    """Pipeline that the student was made from; needed where it has full weights."""

    def __call__(self, method: WanStudent, folder: Path) -> list[str]:
        """Write the file; returns notes for the user."""
        student, notes = as_lora(method, self.rank, self.base)
        tensors, left_out = peft_tensors(student)
        prefixed = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
        write(prefixed, folder / "pytorch_lora_weights.safetensors")
        if left_out:
            more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
            notes.append(f"left out, since this format cannot hold it: {left_out[0]}{more}")
        return notes


@dataclass(frozen=True, kw_only=True)
class LightX2V:
    """The student in native Wan names for LightX2V, and its ``config.json``; full weights stay full without a rank."""

    rank: int = 0
    """Extract a LoRA of this rank from full weights; 0 writes them as ``distill_model.safetensors``."""
    base: str = ""
    """Pipeline that the student was made from; needed to extract."""

    def __call__(self, method: WanStudent, folder: Path) -> list[str]:
        """Write weights and configuration; returns notes for the user."""
        student, notes = _full_or_lora(method, self.rank, self.base)
        file = folder / ("distill_model.safetensors" if student.full else "lora.safetensors")
        write(native_tensors(student, ("lora_down", "lora_up"), {".modulation": ".diff_m"}), file)
        config = lightx2v.config(method.grid, file, full=bool(student.full))
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
        return notes


@dataclass(frozen=True, kw_only=True)
class Comfy:
    """The student in native Wan names for ComfyUI: a LoRA, or a diffusion model where the student has full weights."""

    rank: int = 0
    """Extract a LoRA of this rank from full weights; 0 writes them as ``diffusion_model.safetensors``."""
    base: str = ""
    """Pipeline that the student was made from; needed to extract."""

    def __call__(self, method: WanStudent, folder: Path) -> list[str]:
        """Write the file; returns notes for the user."""
        student, notes = _full_or_lora(method, self.rank, self.base)
        tensors = native_tensors(student, ("lora_A", "lora_B"), {".modulation": ".modulation.diff"})
        write(tensors, folder / ("diffusion_model.safetensors" if student.full else "lora.safetensors"))
        levels = ", ".join(f"{sigma:.4f}" for sigma in (*method.grid.sigmas.tolist(), 0.0))
        return [*notes, f"sample with euler, cfg 1, and these sigmas: {levels}"]


def as_lora(method: WanStudent, rank: int, base: str) -> tuple[StudentWeights, list[str]]:
    """The student as a LoRA with its strength folded in: as it is, or extracted from full weights, with notes.

    Raises:
        FewstepError: it has full weights and no base is given.
        BadFileError: it cannot be read, or does not fit the base.
    """
    student = _student(method)
    if not student.full:
        return student.scaled(method.strength), []
    if not base:
        raise FewstepError("this student has full weights: name with --base the model that it was made from")
    before = wan.check(load(base).model).state_dict()
    student.check_fits({name: tensor.shape for name, tensor in before.items()}, method.weights)
    lora, kept = extract_lora(before, student.full, rank)
    return lora, [f"a LoRA of rank {rank} keeps {100 * kept:.1f} % of the squared change of the weights"]


def _student(method: WanStudent) -> StudentWeights:
    if (student := method.student()) is None:
        raise FewstepError("this method has no weights of its own: there is nothing to export")
    return student


def _full_or_lora(method: WanStudent, rank: int, base: str) -> tuple[StudentWeights, list[str]]:
    """Full weights as they are, unless a rank is asked for; a LoRA otherwise."""
    student = _student(method)
    return (student, []) if student.full and not rank else as_lora(method, rank, base)
