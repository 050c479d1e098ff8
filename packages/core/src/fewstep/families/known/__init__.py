"""Sizes of real models by hub id, for plans that need no network: the fields of their configurations that count.

One file a model, named by its id with ``--`` for each slash; in it, configurations by part: ``model`` for language
models, ``transformer``, ``vae`` and ``text_encoder`` for pipelines. The numbers are those of the published files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Hub ids of all models that are known."""
    return sorted(file.stem.replace("--", "/") for file in FOLDER.glob("*.json"))


def parts(name: str) -> dict[str, dict[str, Any]]:
    """Configurations of one of `names` by part."""
    return json.loads((FOLDER / f"{name.replace('/', '--')}.json").read_text(encoding="utf-8"))
