"""Calibration data: from a task that brings some, or from the user's own file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fewstep import plugins
from fewstep.errors import BadFileError, FewstepError
from fewstep.loaders import Loaded


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
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadFileError(f"{path} cannot be read: {error}") from error
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(seed))[:samples].tolist()
    return [_sample(path, number, lines[number], loaded) for number in order]


def _sample(path: Path, number: int, line: str, loaded: Loaded) -> dict[str, Any]:
    try:
        sample = json.loads(line)
        prompt, answer = str(sample["prompt"]), str(sample["answer"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadFileError(f'{path}:{number + 1} is no {{"prompt": ..., "answer": ...}}: {error}') from error
    pictures = [path.parent / sample["image"]] if sample.get("image") else []
    asked = inputs(loaded, prompt, pictures)
    whole = inputs(loaded, prompt, pictures, answer)
    start, length = asked["input_ids"].shape[1], whole["input_ids"].shape[1]
    if length <= start:
        raise BadFileError(f"{path}:{number + 1} has an empty answer")
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[:, start - 1 : length - 1] = True  # the first token of the answer is predicted at the last one of the prompt
    return {"inputs": whole, "score_mask": mask}


def inputs(loaded: Loaded, prompt: str, pictures: Sequence[Path] = (), answer: str | None = None) -> dict[str, Any]:
    """Keyword arguments of the model for one prompt, with its pictures, and with the answer where there is one.

    Raises:
        BadFileError: a picture cannot be read.
        FewstepError: the model has no processor, or reads no pictures.
    """
    processor = loaded.processor
    if processor is None:
        raise FewstepError(f"{loaded.name} has no tokenizer or processor")
    if pictures and not hasattr(processor, "image_processor"):
        raise FewstepError(f"{loaded.name} reads no pictures; leave the image out")
    opened = [_picture(path) for path in pictures]
    content: Any = prompt
    if hasattr(processor, "image_processor"):
        content = [*({"type": "image"} for _ in opened), {"type": "text", "text": prompt}]
    said = [{"role": "user", "content": content}]
    said += [{"role": "assistant", "content": answer}] if answer is not None else []
    tokenizer = getattr(processor, "tokenizer", processor)
    if getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None):
        text = processor.apply_chat_template(said, add_generation_prompt=answer is None, tokenize=False)
    else:
        text = prompt if answer is None else f"{prompt} {answer}"
    more = {"images": opened} if opened else {}
    return dict(processor(text=[text], return_tensors="pt", **more))


def _picture(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise BadFileError(f"{path} is no picture that can be read: {error}") from error
