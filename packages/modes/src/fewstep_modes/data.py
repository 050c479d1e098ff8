"""Calibration data: from a task that brings some, or from the user's own file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from fewstep import plugins
from fewstep.contract import Loaded
from fewstep.data import files
from fewstep.errors import BadFileError, FewstepError
from fewstep.families import vlm


def of_task(name: str, loaded: Loaded, samples: int, batch: int, seed: int) -> list[dict[str, Any]]:
    """What the task called `name` offers for calibration: its `calibration(loaded, samples, batch, seed)`.

    Raises:
        UnknownNameError: there is no such task.
        FewstepError: it offers none.
    """
    task = plugins.find(plugins.tasks(), name, "task").load()()
    if not hasattr(task, "calibration"):
        raise FewstepError(f"the task {name} brings no calibration data; give a file of your own with --data")
    return task.calibration(loaded, samples, batch, seed)


def of_file(path: Path, loaded: Loaded, samples: int, seed: int) -> list[dict[str, Any]]:
    """Samples drawn from a JSON-lines file: ``{"prompt": ..., "answer": ..., "image": path}``, the image may be absent.

    Raises:
        BadFileError: a line, or an image that it names, cannot be read.
    """
    lines = [line for line in files.read_lines(path) if line.strip()]
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(seed))[:samples].tolist()
    return [_sample(path, number, lines[number], loaded) for number in order]


def _sample(path: Path, number: int, line: str, loaded: Loaded) -> dict[str, Any]:
    try:
        sample = json.loads(line)
        prompt, answer = str(sample["prompt"]), str(sample["answer"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadFileError(f'{path}:{number + 1} is no {{"prompt": ..., "answer": ...}}: {error}') from error
    pictures = [path.parent / sample["image"]] if sample.get("image") else []
    asked = vlm.inputs(loaded, prompt, pictures)
    whole = vlm.inputs(loaded, prompt, pictures, answer)
    start, length = asked["input_ids"].shape[1], whole["input_ids"].shape[1]
    if length <= start:
        raise BadFileError(f"{path}:{number + 1} has an empty answer")
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[:, start - 1 : length - 1] = True  # the first token of the answer is predicted at the last one of the prompt
    return {"inputs": whole, "score_mask": mask}
