"""The trained VAE of real clips, which comes with this package."""

from __future__ import annotations

from pathlib import Path

from fewstep.contract import Loaded
from fewstep.loaders import from_folder

FOLDER = Path(__file__).parents[1] / "weights" / "clips-wan-vae"


def vae(*, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """``clips-wan-vae``: an ``AutoencoderKLWan`` that shrinks space by 4 and time by 2."""
    return from_folder(FOLDER, name="clips-wan-vae", dtype=dtype, device=device, weights="trained")
