"""Text files: read in one way, written atomically."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from ..errors import BadFileError, FewstepError

_LINE_END = re.compile(r"\r?\n")


def read_text(path: Path | str) -> str:
    """Text of a UTF-8 file, without a byte order mark; ``-`` reads standard input.

    Raises:
        BadFileError: the file is missing, cannot be read, or is not UTF-8.
    """
    try:
        if str(path) == "-" and sys.stdin is None:
            raise BadFileError("standard input cannot be read: it is closed; give a file instead of -")
        raw = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFileError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error}") from error


def read_lines(path: Path | str) -> list[str]:
    """Lines of a UTF-8 file without their ends; only ``\\n`` and ``\\r\\n`` end a line.

    Raises:
        BadFileError: see `read_text`.
    """
    lines = _LINE_END.split(read_text(path))
    return lines[:-1] if lines[-1] == "" else lines


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file that appears complete or not at all.

    Raises:
        OSError: it cannot be written; what was there before is there still.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def check_writable(path: Path) -> None:
    """Find out before the work whether a file can be written; nothing is left behind.

    Raises:
        FewstepError: there is no such folder, it is not writable, or `path` is a folder.
    """
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        reason = "it is a folder" if path.is_dir() else "no such folder" if not folder.is_dir() else "not writable"
        raise FewstepError(f"{path} cannot be written: {reason}")
