"""Launch settings of Triton kernels: the fastest of a small set on this card, measured once and kept in a file.

``fewstep`` in the user's cache directory has one JSON file for each card and version of Triton; removing it measures
anew. Only large calls are tuned: a small one is over before its settings matter.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from fewstep.cache_folder import cache_folder
from fewstep.kernels.tiles import interpreting

log = logging.getLogger("fewstep")
Grid = Callable[[Mapping[str, Any]], tuple[int, ...]]
"""Programs of a launch, from its constants."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Settings of one launch of a kernel."""

    constants: Mapping[str, Any]
    """Sizes of tiles, by the names of the kernel's ``tl.constexpr`` arguments."""
    warps: int = 4
    stages: int | None = None
    """Tiles that are loaded ahead; None leaves it to the compiler."""

    def options(self) -> dict[str, int]:
        """Those of a launch."""
        return {"num_warps": self.warps} | ({"num_stages": self.stages} if self.stages else {})

    def config(self) -> triton.Config:
        """The same as Triton's own class."""
        return triton.Config(dict(self.constants), **self.options())


@torch.compiler.disable  # the choice depends on files and clocks
def launch(
    function: Any,
    grid: Grid,
    args: Sequence[Any],
    kind: tuple[Any, ...],
    launches: Sequence[Launch],
    *,
    large: bool,
    timer: Callable[..., Any] | None = None,
    **constants: Any,
) -> None:
    """Run a kernel with the settings that are fastest for calls of this kind.

    Args:
        function: a ``@triton.jit`` function that gives the same whatever the settings, and may run several times.
        grid: see `Grid`.
        args: its run-time arguments.
        kind: what the best settings depend on, besides the card: head size, dtype, ...
        launches: the set to choose from; the first one serves where nothing is measured.
        large: the call is worth measuring, where its kind is not known yet.
        timer: measures a call in the place of ``triton.testing.do_bench``.
        constants: the kernel's other ``tl.constexpr`` arguments.
    """
    device = next(arg.device for arg in args if isinstance(arg, torch.Tensor))
    key = (function.__name__, *kind, device)
    if key not in _found and len(launches) > 1 and (timer is not None or not interpreting()):
        file, name = table_of(device), " ".join(map(str, key[:-1]))
        known = _known(file, name, launches)
        if known is None and large and not _capturing(device):
            known = _fastest(function, grid, args, launches, timer, constants)
            _keep(file, name, known)
            log.info("%s on %s: %s", name, file.stem, _plain(known))
        if known is not None:
            _found[key] = known
    chosen = _found.get(key, launches[0])
    function[grid(chosen.constants)](*args, **constants, **chosen.constants, **chosen.options())


def table_of(device: torch.device) -> Path:
    """File of the settings that were found on this device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    words = "".join(letter if letter.isalnum() else "-" for letter in name).lower()
    return cache_folder() / "tuning" / f"{words}-triton-{triton.__version__}.json"


def _fastest(
    function: Any, grid: Grid, args: Sequence[Any], launches: Sequence[Launch], timer: Any, constants: Mapping[str, Any]
) -> Launch:
    """Settings that need more registers or memory than there are lose."""
    configs = [one.config() for one in launches]
    tuner = triton.autotune(configs=configs, key=[], do_bench=timer)(function)
    tuner[grid](*args, **constants)
    return launches[next(n for n, config in enumerate(configs) if config is tuner.best_config)]


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


_found: dict[tuple[Any, ...], Launch] = {}
"""Settings by kernel, kind and device, in this process."""


def _table(file: Path) -> dict[str, Any]:
    """What a file holds; a damaged one counts as none."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _known(file: Path, name: str, launches: Sequence[Launch]) -> Launch | None:
    """Settings from an earlier process, if they are among those that there are now."""
    stored = _table(file).get(name)
    return next((one for one in launches if _plain(one) == stored), None)


def _keep(file: Path, name: str, found: Launch) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        table = {**_table(file), name: _plain(found)}
        part.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        os.replace(part, file)
    except OSError as error:  # then every process measures anew
        log.warning("the settings of kernels cannot be kept in %s: %s", file, error)


def _plain(one: Launch) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(one)))
