"""Formats of ``fewstep export`` for causal students: a diffusers folder with the method, and files of LightX2V."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fewstep import hub
from fewstep.data.files import write_text
from fewstep.errors import FewstepError
from fewstep.families.wan_names import to_native
from fewstep.loaders import load
from fewstep.students.wan_files import write

from .method import Salt

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
README = """# Causal few-step student

Videos of any length, {chunk} latent frames at a time, in {steps} network calls and one for the cache, without guidance.

```python
from diffusers import WanPipeline
from fewstep_salt import {kind}

pipe = WanPipeline.from_pretrained("this/folder")
with {kind}.of(pipe).apply(pipe):
    pipe(prompt, num_frames=81)
```

On the command line: `fewstep run {name} --model this/folder --prompt "..." --seconds 20 --output out.mp4`.
"""


@dataclass(frozen=True, kw_only=True)
class CausalFolder:
    """A whole pipeline with the student's weights, and ``fewstep.json`` with its chunk, window and steps."""

    base: str
    """Pipeline that the student was made from: a name from `fewstep list`, a local folder, or a hub id."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of the weights that are written."""

    def __call__(self, method: Salt, folder: Path) -> list[str]:
        """Write the folder; returns notes for the user."""
        pipe = load(self.base, dtype=self.dtype).model
        with method.apply(pipe):
            pipe.save_pretrained(folder)
        hub.save(dataclasses.replace(method, weights=None), folder)
        shown = {"chunk": method.chunk, "steps": len(method.steps), "kind": type(method).__name__, "name": method.name}
        write_text(folder / "README.md", README.format(**shown))
        return []


@dataclass(frozen=True, kw_only=True)
class CausalLightX2V:
    """All weights in the names of Self Forcing, and a ``config.json`` for LightX2V's model class ``wan2.1_sf``."""

    base: str = ""
    """Pipeline that the student was made from; needed where the student is a LoRA, which is merged into it."""

    def __call__(self, method: Salt, folder: Path) -> list[str]:
        """Write weights and configuration; returns notes for the user."""
        weights = _whole(method, self.base)
        file = folder / "causal_model.safetensors"
        write({f"model.{to_native(name)}": tensor for name, tensor in weights.items()}, file)
        write_text(folder / "config.json", json.dumps(lightx2v_config(method, file), indent=2) + "\n")
        notes = []
        if method.relative or method.codec != "plain" or method.eta != 1:
            notes.append("left out, since LightX2V has settings of its own for them: relative, codec, eta")
        return notes


def _whole(method: Salt, base: str) -> dict[str, Any]:
    """All weights of the student, in diffusers' names."""
    if (student := method.student()) is None:
        raise FewstepError("this method has no weights of its own: there is nothing to export")
    if student.full:
        return student.full
    if not base:
        raise FewstepError("this student is a LoRA: name with --base the model that it was made from")
    pipe = load(base).model
    with method.apply(pipe):
        return {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}


def lightx2v_config(method: Salt, file: Path) -> dict[str, Any]:
    """The part of a LightX2V configuration that a causal student decides."""
    causal = {
        "local_attn_size": -1 if method.window is None else method.window,
        "sink_size": method.sink,
        "num_frame_per_chunk": method.chunk,
        "denoising_step_list": [round(timestep, 4) for timestep in method.grid.timesteps.tolist()],
    }
    return {
        "infer_steps": len(method.steps),
        "sample_shift": method.shift,
        "sample_guide_scale": 1,
        "enable_cfg": False,
        "dit_original_ckpt": str(file),
        "ar_config": causal,
    }
