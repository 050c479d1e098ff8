"""``fewstep report`` and ``fewstep push``: publish rows and saved methods."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .. import hub
from ..errors import BadFileError, FewstepError
from .flags import Group, parse


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Source and outputs of the report; without --html it is printed as Markdown."""

    source: Annotated[Path, tyro.conf.Positional] = Path("results")
    """A .jsonl file of rows, or a folder of them."""
    html: Path | None = None
    """Write one self-contained page to this file."""
    figures: Path | None = None
    """Write the figures to this folder, as PNG and SVG."""
    readme: Path | None = None
    """Bring the table between the markers of this README up to date."""
    archive: bool = False
    """First move rows that later ones replace to archive/, and delete samples of runs that have no other rows."""


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Folder and repository."""

    folder: Annotated[Path, tyro.conf.Positional]
    """A saved method: the folder of `fewstep fit --out` or of `save_pretrained`."""
    repository: Annotated[str, tyro.conf.Positional]
    """USER/NAME on the hub; made if it does not exist."""
    private: bool = False
    """Make the repository private."""


def report(words: list[str]) -> int:
    """Print the rows as Markdown, or write the page; and the figures and the README table where asked for.

    Raises:
        FewstepError: there are no rows, a file is damaged, or matplotlib is missing.
        OSError: an output cannot be written.
    """
    from ..bench.archive import archive
    from ..bench.readme import update_readme
    from ..bench.report import write_report

    (options,) = parse("fewstep report", "measured rows as tables and figures", words, [Group("report", ReportOptions)])
    if options.archive and not options.source.is_dir():
        raise FewstepError(f"--archive moves rows of a whole folder of results: {options.source} is none")
    if options.archive:
        print(f"moved {archive(options.source)} rows to {options.source}/archive")
    text = write_report(options.source, options.html, figures=options.figures)
    if options.readme:
        update_readme(options.readme, options.source)
    print(f"wrote {options.html}" if options.html else text)
    return 0


def push(words: list[str]) -> int:
    """Upload a saved method and print its address.

    Raises:
        FewstepError: the folder or the name is wrong, the hub is offline, or the upload fails.
    """
    (options,) = parse("fewstep push", "upload a saved method to the hub", words, [Group("push", PushOptions)])
    if not (options.folder / hub.CONFIG).is_file():
        raise BadFileError(f"{options.folder} is not a saved fewstep method: it has no {hub.CONFIG}")
    if options.repository.count("/") != 1 or not all(options.repository.split("/")):
        raise FewstepError(f"{options.repository!r} is not USER/NAME")
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        raise FewstepError("cannot push: HF_HUB_OFFLINE is set")
    try:
        address = hub.push_folder(options.folder, options.repository, private=options.private)
    except Exception as error:  # the hub client raises many kinds; the user needs one sentence
        raise FewstepError(f"cannot push to {options.repository}: {type(error).__name__}: {error}") from error
    print(address)
    return 0
