"""Sample outputs of runs: a JSON file and a folder of images for each, found by an index."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadFileError, FewstepError
from .media import Media, embed
from .rows import DENSE
from .task import Sample

FOLDER = "samples"
INDEX = "index.json"
"""Task, model and files by run."""
_IMAGES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
}
_SUFFIXES = {b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp"}


def write_samples(folder: Path, run: str, head: dict[str, Any], samples: Mapping[str, Sequence[Sample]]) -> None:
    """Write ``<run>.json`` to `folder` with copies of the images, and list it; nothing where there are no samples.

    Args:
        folder: made where it does not exist.
        run: id of the run.
        head: task, model and params.
        samples: by label of the arm.

    Raises:
        FewstepError: an image is neither PNG, GIF nor WebP.
        OSError: a file cannot be read or written.
    """
    if not any(samples.values()):
        return
    (folder / run).mkdir(parents=True, exist_ok=True)
    arms = {
        label: [_stored(sample, folder, f"{run}/{arm}-{i}") for i, sample in enumerate(of_arm)]
        for arm, (label, of_arm) in enumerate(samples.items())
    }
    if not any((folder / run).iterdir()):
        (folder / run).rmdir()
    _write_json(folder / f"{run}.json", {**head, "arms": arms})
    _write_json(folder / INDEX, _index(folder))


def _stored(sample: Sample, folder: Path, stem: str) -> dict[str, str | None]:
    """The sample as JSON; its file is copied, because the report embeds only what lies in the samples folder."""
    name = sample.file
    if sample.image is not None:
        kind = next((suffix for head, suffix in _SUFFIXES.items() if sample.image.startswith(head)), None)
        if kind is None:
            raise FewstepError(f"the image of sample {sample.title!r} is neither PNG, GIF nor WebP")
        name = stem + kind
        (folder / name).write_bytes(sample.image)
    elif sample.file is not None:
        name = stem + Path(sample.file).suffix
        shutil.copyfile(sample.file, folder / name)
    return {"title": sample.title, "text": sample.text, "file": name}


def _write_json(path: Path, value: Any) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def _index(folder: Path) -> dict[str, dict[str, Any]]:
    """Task, model and files of the runs in `folder`; read from the files, so that it is complete whoever wrote them."""
    index = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == INDEX:
            continue
        try:
            stored = json.loads(path.read_bytes())
            head = {"task": stored["task"], "model": stored["model"]}
        except (ValueError, TypeError, KeyError) as error:
            warnings.warn(f"{path} is damaged and not listed: {type(error).__name__} {error}", stacklevel=3)
            continue
        images = sorted(path.with_suffix("").glob("*"))
        index[path.stem] = {**head, "files": [path.name, *(f"{path.stem}/{image.name}" for image in images)]}
    return index


def prune_samples(folder: Path, runs: Collection[str]) -> None:
    """Delete the samples of all runs but `runs`, and list the rest.

    Raises:
        OSError: a file cannot be deleted or written.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name != INDEX and path.stem not in runs:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    _write_json(folder / INDEX, _index(folder))


@dataclass(frozen=True)
class SampleCell:
    """One output as the page shows it: text, an embedded image, or the name of a file that is missing."""

    text: str | None = None
    media: Media | None = None
    missing: str | None = None


@dataclass(frozen=True)
class SampleGrid:
    """The samples of one run, side by side."""

    arms: tuple[str, ...]
    """Dense first."""
    lines: tuple[tuple[str, tuple[SampleCell, ...]], ...]
    """A title, and one output per arm in the order of `arms`."""


def read_samples(folder: Path, runs: Collection[str], task: str, model: str) -> list[SampleGrid]:
    """The samples of those of `runs` that `folder` lists for this task and model.

    Raises:
        BadFileError: the index or a samples file is damaged.
    """
    listed = folder / INDEX
    try:
        index = json.loads(listed.read_bytes()) if listed.is_file() else _index(folder)
        wanted = [run for run in runs if run in index and (index[run]["task"], index[run]["model"]) == (task, model)]
        paths = [folder / index[run]["files"][0] for run in wanted]
    except (ValueError, TypeError, LookupError) as error:
        raise BadFileError(f"{listed} is damaged; delete it to have it made anew") from error
    grids = [_grid(path) for path in paths]
    return [grid for grid in grids if grid.lines]


def _grid(path: Path) -> SampleGrid:
    try:
        stored = json.loads(path.read_bytes())
        by_arm = dict(sorted(stored["arms"].items(), key=lambda item: item[0].split()[:1] != [DENSE]))
        longest: list[dict[str, Any]] = max(by_arm.values(), key=len, default=[])
        titles = [sample["title"] for sample in longest]
        columns = [[_cell(sample, path.parent) for sample in samples] for samples in by_arm.values()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadFileError(f"{path} is not a samples file: {type(error).__name__} {error}") from error
    absent = SampleCell(missing="no sample")
    lines = [
        (title, tuple(column[index] if index < len(column) else absent for column in columns))
        for index, title in enumerate(titles)
    ]
    return SampleGrid(tuple(by_arm), tuple(lines))


def _cell(sample: dict[str, Any], folder: Path) -> SampleCell:
    name = sample.get("file")
    if not name:
        return SampleCell(text=sample.get("text") or "")
    file = (folder / name).resolve()
    kind = _IMAGES.get(file.suffix.lower())
    # A page is passed on to others: only images inside the samples folder may be embedded in it.
    if kind is None or not file.is_relative_to(folder.resolve()) or not file.is_file():
        return SampleCell(text=sample.get("text"), missing=f"missing: {name}")
    return SampleCell(sample.get("text"), embed(file.read_bytes(), kind))
