"""The folder of files that fewstep can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``FEWSTEP_CACHE``, or the user's cache directory."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("FEWSTEP_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("fewstep")
