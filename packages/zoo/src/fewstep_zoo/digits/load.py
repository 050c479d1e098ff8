"""Loaders of the trained models of moving digits."""

from __future__ import annotations

import functools
from pathlib import Path

from fewstep.contract import Loaded
from fewstep.errors import BadFileError
from fewstep.loaders import from_folder

from .judge import DigitsJudge

WEIGHTS = Path(__file__).parents[1] / "weights"
TEACHER = WEIGHTS / "digits-wan"


def teacher(*, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """Load ``digits-wan``: a stock `WanPipeline` without a VAE; see `fewstep_zoo.digits.model.make` for its call."""
    loaded = from_folder(TEACHER, name="digits-wan", dtype=dtype, device=device, weights="trained")
    loaded.model.set_progress_bar_config(disable=True)
    return loaded


def judge(*, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """Load ``digits-judge``: a `DigitsJudge`."""
    import torch

    network = read_judge(WEIGHTS / "digits-judge").to(device, getattr(torch, dtype))
    return Loaded(model=network, name="digits-judge", weights="trained")


@functools.cache
def shared_judge() -> DigitsJudge:
    """The judge on the CPU in float32, read once in a process; `moving-digits` scores with it."""
    return read_judge(WEIGHTS / "digits-judge")


def read_judge(folder: Path) -> DigitsJudge:
    """Read a saved judge, without gradients.

    Raises:
        BadFileError: the folder lacks a weight, or its file is damaged or missing.
    """
    try:
        network, info = DigitsJudge.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadFileError(f"{folder} holds no judge: {str(error).splitlines()[0]}") from error
    if strange := [*info["missing_keys"], *info["unexpected_keys"]]:
        raise BadFileError(f"{folder} does not fit a DigitsJudge: {strange[0]} is missing or unknown")
    return network.eval().requires_grad_(False)
