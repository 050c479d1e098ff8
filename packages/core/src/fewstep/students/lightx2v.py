"""The part of a LightX2V configuration that a few-step student decides, written and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..data.files import read_text
from ..errors import BadFileError
from ..flow import StepGrid


def config(grid: StepGrid, file: Path, *, full: bool) -> dict[str, Any]:
    """Steps, shift and weights of a student; `file` holds all of its weights, or a LoRA."""
    sampler = {
        "infer_steps": len(grid),
        "denoising_step_list": list(grid.raw),
        "sample_shift": int(grid.shift) if grid.shift == int(grid.shift) else grid.shift,
        "enable_cfg": False,
    }
    weights = {"dit_original_ckpt": str(file)} if full else {"lora_configs": [{"path": str(file), "strength": 1.0}]}
    return sampler | weights


def fields(path: Path) -> dict[str, Any]:
    """Fields of the student that a configuration describes, by their names in `fewstep.students.wan.WanStudent`.

    Raises:
        BadFileError: it cannot be read, is no such configuration, or has guidance or several LoRAs.
    """
    text = read_text(path)
    try:
        read = json.loads(text)
        steps, shift = tuple(read["denoising_step_list"]), float(read["sample_shift"])
        loras = read.get("lora_configs") or [{"path": read["dit_original_ckpt"]}]
        weights, strength = Path(loras[0]["path"]), float(loras[0].get("strength", 1.0))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFileError(f"{path} is no LightX2V configuration of a few-step student: {error!r}") from error
    if read.get("enable_cfg", True) or len(loras) > 1:
        raise BadFileError(f"{path}: a few-step student has one set of weights and enable_cfg false")
    return {"weights": weights, "steps": steps, "shift": shift, "strength": strength}
