"""`fewstep export` for students: a diffusers folder, a LoRA for diffusers, and the files of LightX2V and ComfyUI."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from fewstep.errors import BadFileError, FewstepError
from fewstep.families import wan
from fewstep.loaders import load
from safetensors.torch import save_file
from torch import Tensor

from .method import SGMD, check_fits
from .names import to_native
from .weights import Factors, StudentWeights, extract, read

USE = """# Few-step student

Four network calls for a video, without guidance; plain diffusers, no other package needed.

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
    """Of the weights that are written."""

    def __call__(self, method: SGMD, folder: Path) -> list[str]:
        """Write the folder; returns notes for the user."""
        pipe = load(self.base, dtype=self.dtype).model
        with method.apply(pipe):
            pipe.save_pretrained(folder)
        timesteps = ", ".join(f"{timestep:.1f}" for timestep in method.grid.timesteps)
        (folder / "README.md").write_text(USE.format(steps=len(method.steps), timesteps=timesteps), encoding="utf-8")
        return []


@dataclass(frozen=True, kw_only=True)
class PeftLora:
    """``pytorch_lora_weights.safetensors`` for ``pipe.load_lora_weights``, with any alpha folded in."""

    rank: int = 64
    """Of a LoRA that is extracted from full weights."""
    base: str = ""
    """What the student was made from; needed where it has full weights."""

    def __call__(self, method: SGMD, folder: Path) -> list[str]:
        """Write the file; returns notes for the user."""
        student, notes = as_lora(method, self.rank, self.base)
        tensors, left_out = peft_tensors(student)
        _save({f"transformer.{name}": tensor for name, tensor in tensors.items()}, folder, "pytorch_lora_weights")
        if left_out:
            notes.append(f"left out, since this format cannot hold it: {_several(left_out)}")
        return notes


@dataclass(frozen=True, kw_only=True)
class LightX2V:
    """The student in native Wan names for LightX2V, and its ``config.json``; full weights stay full without a rank."""

    rank: int = 0
    """Extract a LoRA of this rank from full weights; 0 writes them as ``distill_model.safetensors``."""
    base: str = ""
    """What the student was made from; needed to extract."""

    def __call__(self, method: SGMD, folder: Path) -> list[str]:
        """Write weights and configuration; returns notes for the user."""
        student, notes = _native_student(method, self.rank, self.base)
        name = "distill_model" if student.full else "lora"
        modulation = {".modulation": ".diff_m"}
        _save(native_tensors(student, ("lora_down", "lora_up"), modulation), folder, name)
        config = lightx2v_config(method, folder / f"{name}.safetensors", full=bool(student.full))
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return notes


@dataclass(frozen=True, kw_only=True)
class Comfy:
    """The student in native Wan names for ComfyUI: a LoRA, or a diffusion model where the student has full weights."""

    rank: int = 0
    """Extract a LoRA of this rank from full weights; 0 writes them as ``diffusion_model.safetensors``."""
    base: str = ""
    """What the student was made from; needed to extract."""

    def __call__(self, method: SGMD, folder: Path) -> list[str]:
        """Write the file; returns notes for the user."""
        student, notes = _native_student(method, self.rank, self.base)
        modulation = {".modulation": ".modulation.diff"}
        tensors = native_tensors(student, ("lora_A", "lora_B"), modulation)
        _save(tensors, folder, "diffusion_model" if student.full else "lora")
        levels = ", ".join(f"{sigma:.4f}" for sigma in (*method.grid.sigmas.tolist(), 0.0))
        return [*notes, f"sample with euler, cfg 1, and these sigmas: {levels}"]


def as_lora(method: SGMD, rank: int, base: str) -> tuple[StudentWeights, list[str]]:
    """The student as a LoRA with its strength folded in: as it is, or extracted from full weights, with notes.

    Raises:
        FewstepError: it has full weights and no base is given.
        BadFileError: it cannot be read, or does not fit the base.
    """
    student = _student(method)
    if not student.full:
        factors = {name: Factors(f.down, f.up * method.strength) for name, f in student.factors.items()}
        return StudentWeights(factors=factors, deltas=_times(student.deltas, method.strength)), []
    if not base:
        raise FewstepError("this student has full weights: name with --base the model that it was made from")
    before = wan.check(load(base).model).state_dict()
    check_fits(student, {name: tensor.shape for name, tensor in before.items()}, method.weights)
    lora, kept = extract(before, student.full, rank)
    return lora, [f"a LoRA of rank {rank} keeps {100 * kept:.1f} % of the squared change of the weights"]


def _student(method: SGMD) -> StudentWeights:
    if method.weights is None:
        raise FewstepError("this method has no weights of its own: there is nothing to export")
    return read(Path(method.weights))


def _native_student(method: SGMD, rank: int, base: str) -> tuple[StudentWeights, list[str]]:
    student = _student(method)
    return (student, []) if student.full and not rank else as_lora(method, rank, base)


def _times(tensors: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {name: tensor * factor for name, tensor in tensors.items()}


def peft_tensors(student: StudentWeights) -> tuple[dict[str, Tensor], list[str]]:
    """The LoRA in diffusers' and PEFT's names, and the parameters whose change they have no name for."""
    tensors: dict[str, Tensor] = {}
    biases = {name.removesuffix(".bias") for name in student.deltas if name.endswith(".bias")} & student.factors.keys()
    for module, factors in student.factors.items():
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = factors.down, factors.up
        if biases:  # one LoraConfig for all: with biases everywhere, or nowhere
            zero = torch.zeros(factors.up.shape[0], dtype=factors.up.dtype)
            tensors[f"{module}.lora_B.bias"] = student.deltas.get(f"{module}.bias", zero)
    return tensors, [name for name in student.deltas if name.removesuffix(".bias") not in biases]


def native_tensors(student: StudentWeights, factors: tuple[str, str], tables: Mapping[str, str]) -> dict[str, Tensor]:
    """Full weights under native names, or a LoRA with ``diffusion_model.`` before them.

    Args:
        student: what to write.
        factors: what the two low-rank factors are called: ``("lora_down", "lora_up")``.
        tables: what a change of a parameter with this ending is called: ``{".modulation": ".diff_m"}``.
    """
    if student.full:
        return {to_native(name): tensor for name, tensor in student.full.items()}
    tensors = {}
    for module, found in student.factors.items():
        name = to_native(module)
        tensors |= {f"{name}.{factors[0]}.weight": found.down, f"{name}.{factors[1]}.weight": found.up}
    endings = {".weight": ".diff", ".bias": ".diff_b", **tables, ".emb_pos": ".emb_pos.diff"}
    for parameter, delta in student.deltas.items():
        name = to_native(parameter)
        ending = next(ending for ending in endings if f".{name}".endswith(ending))
        tensors[name.removesuffix(ending) + endings[ending]] = delta
    return {f"diffusion_model.{name}": tensor for name, tensor in tensors.items()}


def lightx2v_config(method: SGMD, file: Path, *, full: bool) -> dict[str, Any]:
    """The part of a LightX2V configuration that the student decides."""
    config = {
        "infer_steps": len(method.steps),
        "denoising_step_list": list(method.steps),
        "sample_shift": int(method.shift) if method.shift == int(method.shift) else method.shift,
        "enable_cfg": False,
    }
    weights = {"dit_original_ckpt": str(file)} if full else {"lora_configs": [{"path": str(file), "strength": 1.0}]}
    return config | weights


def from_lightx2v(config: Path) -> SGMD:
    """The student that a LightX2V configuration describes; paths in it count from where LightX2V is started.

    Raises:
        BadFileError: not such a configuration, one with guidance, or with several LoRAs.
    """
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        steps, shift = tuple(found["denoising_step_list"]), float(found["sample_shift"])
        loras = found.get("lora_configs") or [{"path": found["dit_original_ckpt"]}]
        path, strength = Path(loras[0]["path"]), float(loras[0].get("strength", 1.0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFileError(f"{config} is no LightX2V configuration of a few-step student: {error!r}") from error
    if found.get("enable_cfg", True) or len(loras) > 1:
        raise BadFileError(f"{config}: a few-step student has one set of weights and enable_cfg false")
    return SGMD(weights=path, steps=steps, shift=shift, strength=strength)


def _save(tensors: Mapping[str, Tensor], folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{name}.safetensors.part"
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    save_file(plain, part, metadata={"format": "pt"})
    os.replace(part, folder / f"{name}.safetensors")


def _several(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
