"""``fewstep kernels``: list kernels, check them on this machine, compile them for GPUs elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from .. import plugins
from .flags import Group, parse
from .table import show_table

if TYPE_CHECKING:
    from ..kernels import Kernel


@dataclass(frozen=True, kw_only=True)
class KernelOptions:
    """Kernels and the work to do; without --check and --compile they are listed."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names from `fewstep list`; default: all."""
    check: bool = False
    """Compare every version of a kernel with its plain specification on this machine."""
    compile: str = ""
    """Compile ahead of time for these GPUs, none of which need be here: sm_80,sm_90,sm_120,gfx942."""


def kernels(words: list[str]) -> int:
    """List, check or compile; exit code 1 when anything fails.

    Raises:
        UnknownNameError: no kernel of that name.
        ValueError: an unknown target.
    """
    (options,) = parse("fewstep kernels", "check and compile kernels", words, [Group("kernels", KernelOptions)])
    cards = plugins.kernels()
    wanted = [plugins.find(cards, name, "kernel").load() for name in options.names or cards]
    targets = [target for target in options.compile.split(",") if target]
    if not options.check and not targets:
        lines = [(kernel.name, ", ".join(("naive", *kernel.fast)), _chosen(kernel)) for kernel in wanted]
        show_table("kernels", ("name", "versions", "taken here"), lines)
        return 0
    from ..kernels.check import report

    results = report(wanted, check=options.check, targets=targets)
    lines = [
        (one["kernel"], one["what"], "ok" if one["ok"] else "FAILED", one["detail"], f"{one['seconds']:.1f} s")
        for one in results
    ]
    show_table("kernels", ("name", "what", "", "detail", "time"), lines)
    return 0 if all(one["ok"] for one in results) else 1


def _chosen(kernel: Kernel) -> str:
    """Backend that the kernel takes for tensors on each device of this machine."""
    import torch

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return ", ".join(f"{device}: {kernel.chosen_backend(device)}" for device in devices)
