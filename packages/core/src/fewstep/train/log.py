"""The log of a run: one JSON object a line for each step, and by name a tracker that shows it."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

from ..errors import FewstepError


class Log:
    """``log.jsonl`` of a run; None as path logs nothing (ranks other than the main one)."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def cut(self, steps: int) -> None:
        """Drop the lines of steps after the first `steps`, and a half-written last line: they will be made again."""
        if self.path is None or not self.path.exists():
            return
        kept = [line for line in self.path.read_bytes().splitlines(keepends=True) if _step(line) <= steps]
        part = self.path.with_name(self.path.name + ".part")
        part.write_bytes(b"".join(kept))
        os.replace(part, self.path)

    def write(self, line: dict[str, Any]) -> None:
        """Add the line of one step.

        Raises:
            FewstepError: it cannot be written (full disk).
        """
        if self.path is not None:
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise FewstepError(f"the log {self.path} cannot be written: {error}") from error


def _step(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Tracker:
    """An experiment tracker with trackio's interface; ``none`` does nothing."""

    def __init__(self, name: str, project: str, settings: dict[str, Any]) -> None:
        self.module: Any = None
        if name == "none":
            return
        try:
            self.module = importlib.import_module(name)
        except ImportError as error:
            raise FewstepError(f"the tracker {name} is not installed: pip install {name}") from error
        self.module.init(project=project, config=settings)

    def write(self, line: dict[str, Any]) -> None:
        """Show the line of one step."""
        if self.module is not None:
            self.module.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])

    def close(self) -> None:
        """Send what is not sent yet."""
        if self.module is not None:
            self.module.finish()
