"""Training checkpoints of causal students (``.pt``): read as tensors alone, the part chosen by its name."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadFileError

SUFFIXES = (".pt", ".pth")
WRAPPERS = re.compile(r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.|^module\.")
"""Parts of names that sharding, recomputation and compilation put in, anywhere."""


def read_checkpoint(path: Path, part: str) -> dict[str, Tensor]:
    """Tensors of one part of a checkpoint, without the names of wrappers and the ``model.`` before all of them.

    Args:
        path: a file of ``torch.save``; nothing in it is run.
        part: ``generator_ema`` or ``generator``; a checkpoint that is one set of weights has no parts.

    Raises:
        BadFileError: it cannot be read, holds more than tensors, or has no such part.
    """
    content = _content(path)
    if not content:
        raise BadFileError(f"{path} holds no weights")
    if not all(isinstance(value, Tensor) for value in content.values()):
        content = _part(content, path, part)
    names = {name: WRAPPERS.sub("", name) for name in content}
    if all(name.startswith("model.") for name in names.values()):
        names = {name: short.removeprefix("model.") for name, short in names.items()}
    if len(set(names.values())) < len(names):
        raise BadFileError(f"{path}: two of its names are one without the wrappers of training")
    return {names[name]: tensor for name, tensor in content.items()}


def _content(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise BadFileError(f"{path} holds more than tensors, or is damaged; nothing in it was run") from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadFileError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise BadFileError(f"{path} holds a {type(content).__name__}, not tensors by name")
    return dict(content)


def _part(content: Mapping[str, Any], path: Path, part: str) -> dict[str, Tensor]:
    def is_weights(value: Any) -> bool:
        return isinstance(value, Mapping) and bool(value) and all(isinstance(one, Tensor) for one in value.values())

    if not is_weights(content.get(part)):
        known = ", ".join(name for name, value in content.items() if is_weights(value)) or "none"
        raise BadFileError(f"{path} has no weights called {part!r}; there are {known}")
    return dict(content[part])
