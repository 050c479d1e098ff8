"""Parts of every long fit: a journal of finished pieces on disk, and a progress bar."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import BadFileError, FewstepError


class Journal:
    """JSON values by JSON key, one line each; a line that a killed run left half written is dropped."""

    def __init__(self, path: Path | None, settings: Any, *, resume: bool = True) -> None:
        """Open or begin the journal.

        Args:
            path: where it lies; None keeps everything in memory.
            settings: what the values depend on, as JSON has it.
            resume: go on with what is there; otherwise it is deleted.

        Raises:
            FewstepError: it was begun with other settings.
            BadFileError: a line is damaged.
        """
        self.path, self._known = path, {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            path.unlink(missing_ok=True)
        self._read(path)
        began = self._known.setdefault("settings", None)
        if began is None:
            self.put("settings", settings)
        elif began != json.loads(json.dumps(settings)):
            raise FewstepError(
                f"{path} was made with other settings ({json.dumps(began)}): use those, another folder, or --no-resume"
            )

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        path.write_bytes(whole + b"\n" if whole else b"")
        for number, line in enumerate(whole.decode("utf-8", "replace").splitlines(), 1):
            try:
                key, value = json.loads(line)
                self._known[json.dumps(key)] = value
            except (ValueError, TypeError) as error:
                raise BadFileError(f"{path}:{number} is damaged; delete it, or start again with --no-resume") from error
        self._known["settings"] = self._known.pop('"settings"', None)

    def get(self, key: Any) -> Any:
        """Return the value of `key`, or None."""
        return self._known.get(json.dumps(key))

    def put(self, key: Any, value: Any) -> Any:
        """Keep `value`; it is on disk when this returns. Returns it as reading it back would give it."""
        line = json.dumps([key, value])
        if self.path is not None:
            with open(self.path, "ab", buffering=0) as file:
                file.write(line.encode() + b"\n")
                os.fsync(file.fileno())
        self._known[json.dumps(key)] = stored = json.loads(line)[1]
        return stored


@contextmanager
def progress_bar() -> Iterator[Any]:
    """A ``rich.progress.Progress`` with the time that is left; it disappears when the work is done."""
    from rich.progress import Progress, TimeRemainingColumn

    with Progress(*Progress.get_default_columns()[:-1], TimeRemainingColumn(), transient=True) as bar:
        yield bar
