"""Checkpoints, written atomically: safetensors for one process, torch DCP (in safetensors files) for shards."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed import checkpoint as dcp

from ..errors import BadFileError, FewstepError
from .parallel import World, any_rank, barrier

Tensors = Mapping[str, Mapping[str, Tensor]]
"""Everything a run needs to go on, by part and name: ``{"student": {"proj.weight": ...}, "student.ema": ...}``."""
STATE, SHARDS = "state.json", "shards"
_FAILURES = (OSError, SafetensorError, dcp.api.CheckpointException)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run: ``step-00000100/`` holds the state after 100 steps."""

    folder: Path
    world: World
    sharded: bool = False
    """Every rank writes its own shards, by torch DCP; otherwise the main rank writes everything."""
    keep: int = 2
    """Number of checkpoints that are kept."""

    def newest(self) -> Path | None:
        """Return the last complete checkpoint, or None."""
        return max(self._complete(), default=None)

    def clean(self) -> None:
        """Remove what a killed process left half-written or half-removed; before the first save."""
        if self.world.is_main:
            for left in self.folder.glob(".step-*"):
                shutil.rmtree(left)
        barrier()

    def save(self, step: int, tensors: Tensors, state: dict[str, Any]) -> Path:
        """Write the checkpoint atomically, then delete old ones.

        Raises:
            FewstepError: it cannot be written (full disk); what was there before is there still.
        """
        final = self.folder / f"step-{step:08d}"
        part = self.folder / f".{final.name}.part"
        self._together(lambda: _empty(part) if self.world.is_main else None, final)
        self._together(lambda: self._write(part, tensors, state), final, part)
        self._together(lambda: self._publish(part, final) if self.world.is_main else None, final, part)
        return final

    def load(self, path: Path, tensors: Tensors) -> dict[str, Any]:
        """Copy a checkpoint into `tensors`, restore the generators of torch, and return what `save` was given as state.

        Raises:
            BadFileError: a file is damaged, or has missing or extra names or other shapes; the first is named.
        """
        state = read_state(path)
        try:
            if self.sharded:
                _load_shards(path / SHARDS, tensors)
            else:
                for part, values in tensors.items():
                    _fill(path / f"{part}.safetensors", values)
            _restore_generators(load_file(path / f"generators-{self.world.rank}.safetensors"))
        except (SafetensorError, FileNotFoundError) as error:
            raise BadFileError(f"the checkpoint {path} is damaged: {error}; remove it to use the one before") from error
        return state

    def _write(self, part: Path, tensors: Tensors, state: dict[str, Any]) -> None:
        if self.sharded:
            writer = dcp.HuggingFaceStorageWriter(str(part / SHARDS), save_distributed=True)
            dcp.save(_flat(tensors), storage_writer=writer)
        elif self.world.is_main:
            for name, values in tensors.items():
                plain = {key: value.detach().cpu().contiguous() for key, value in values.items()}
                save_file(plain, part / f"{name}.safetensors")
        save_file(_generators(), part / f"generators-{self.world.rank}.safetensors")
        if self.world.is_main:
            (part / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")

    def _publish(self, part: Path, final: Path) -> None:
        for file in (*part.rglob("*"), part):
            _sync(file)
        if final.exists():
            _remove(final)
        os.replace(part, final)
        _sync(self.folder)
        for old in sorted(self._complete())[: -self.keep]:
            _remove(old)

    def _complete(self) -> list[Path]:
        return [path for path in self.folder.glob("step-*") if (path / STATE).is_file()]

    def _together(self, work: Callable[[], None], final: Path, part: Path | None = None) -> None:
        """Run `work` on all ranks, and fail on all where it fails on one."""
        error: BaseException | None = None
        try:
            work()
        except _FAILURES as failure:
            error = failure
        if not any_rank(error is not None):
            return
        if part is not None and self.world.is_main:
            shutil.rmtree(part, ignore_errors=True)
        barrier()
        kept = self.newest()
        reason = " ".join(str(error or "another rank failed").split())
        raise FewstepError(
            f"the checkpoint {final} cannot be written: {reason}; "
            + (f"the last good one is {kept}" if kept else "there is none yet")
        ) from error


def read_state(path: Path) -> dict[str, Any]:
    """Read the state that `Checkpoints.save` was given.

    Raises:
        BadFileError: it is missing or damaged.
    """
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError(f"{STATE} holds no object")
        return state
    except (OSError, ValueError) as error:
        raise BadFileError(f"the checkpoint {path} is damaged: {error}; remove it to use the one before") from error


def check_names(names: set[str], expected: set[str], where: Path | str) -> None:
    """Refuse missing and extra names.

    Raises:
        BadFileError: the first that is missing or extra is named.
    """
    for what, wrong in (("lacks", sorted(expected - names)), ("has the unknown", sorted(names - expected))):
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise BadFileError(f"{where} {what} {wrong[0]}{more}")


def _fill(file: Path, values: Mapping[str, Tensor]) -> None:
    with safe_open(file, "pt") as stored:
        check_names(set(stored.keys()), set(values), file)
        for name, value in values.items():
            shape = tuple(stored.get_slice(name).get_shape())
            if shape != tuple(value.shape):
                raise BadFileError(f"{file} has {name} of shape {shape} instead of {tuple(value.shape)}")
            with torch.no_grad():
                value.copy_(stored.get_tensor(name))


def _load_shards(folder: Path, tensors: Tensors) -> None:
    """Read the shards of this rank.

    Raises:
        BadFileError: one is missing, damaged or of another run.
    """
    try:
        _read_shards(folder, tensors)
    except (FewstepError, FileNotFoundError):
        raise
    except (Exception, dcp.api.CheckpointException) as error:  # torch lets the errors of every layer below it through
        causes = [failure for failure, _ in getattr(error, "failures", {}).values()] or [error]
        reason = " ".join(f"{type(causes[0]).__name__}: {causes[0]}".split())[:200]
        raise BadFileError(
            f"a shard in {folder} is damaged ({reason}); remove {folder.parent} to use the one before"
        ) from error


def _read_shards(folder: Path, tensors: Tensors) -> None:
    reader = dcp.HuggingFaceStorageReader(str(folder))
    flat = _flat(tensors)
    stored = reader.read_metadata().state_dict_metadata
    check_names(set(stored), set(flat), folder)
    for name, value in flat.items():
        kept: Any = stored[name]
        if tuple(kept.size) != tuple(value.shape) or sum(chunk.sizes.numel() for chunk in kept.chunks) != value.numel():
            raise BadFileError(f"{folder} has only a part of {name}, or another shape than {tuple(value.shape)}")
    dcp.load(flat, storage_reader=reader)


def _flat(tensors: Tensors) -> dict[str, Tensor]:
    return {f"{part}/{name}": value.detach() for part, values in tensors.items() for name, value in values.items()}


def _generators() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_generators(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _remove(folder: Path) -> None:
    # renamed first: a process killed here must not leave half a checkpoint under a good name
    hidden = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(folder, hidden)
    shutil.rmtree(hidden)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
