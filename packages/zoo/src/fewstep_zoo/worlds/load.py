"""Loaders of the trained models of panning worlds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.contract import Loaded
from fewstep.loaders import from_folder

WEIGHTS = Path(__file__).parents[1] / "weights"
VAE, TEACHER, CAUSAL = WEIGHTS / "worlds-vae", WEIGHTS / "worlds-wan", WEIGHTS / "worlds-causal-wan"


def vae(*, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """Load ``worlds-vae``: an ``AutoencoderKLWan`` that shrinks space by 8 and time by 4."""
    return from_folder(VAE, name="worlds-vae", dtype=dtype, device=device, weights="trained")


def teacher(*, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """Load ``worlds-wan``: a stock ``WanPipeline`` that makes whole clips."""
    return _pipeline(TEACHER, "worlds-wan", dtype=dtype, device=device)


def causal(*, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """Load ``worlds-causal-wan``: a ``WanPipeline`` whose transformer was trained to go on chunk by chunk."""
    return _pipeline(CAUSAL, "worlds-causal-wan", dtype=dtype, device=device)


def _pipeline(folder: Path, name: str, **how: Any) -> Loaded:
    """A pipeline with the VAE that both have in common, which is stored once."""
    loaded = from_folder(folder, name=name, weights="trained", **how)
    loaded.model.register_modules(vae=vae(**how).model)
    loaded.model.set_progress_bar_config(disable=True)
    return loaded
