"""The trained students that come with this package."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).with_name("trained")


def shipped(model: str) -> Path | None:
    """The saved student of a model of the zoo, by the name of its teacher; None where there is none."""
    found = FOLDER / model
    return found if (found / "fewstep.json").is_file() else None
