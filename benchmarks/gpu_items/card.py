"""The card at hand as a value, and reasons not to measure on it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import Item

LEAST_CAPABILITY = (8, 0)
"""Compute capability that the Triton kernels need: bf16 products."""
FOREIGN = 1.5
"""GB in use that a context of our own does not explain."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Facts about one CUDA device, or why there is none."""

    problem: str = ""
    """Why torch cannot use it, in its own words; empty where it can."""
    name: str = "CPU"
    capability: tuple[int, int] = (0, 0)
    built_for: tuple[str, ...] = ()
    """Architectures that this torch has machine code for: ``sm_90``, ``compute_90``."""
    free: float = 0.0
    """GB."""
    total: float = 0.0
    """GB."""
    driver: str = ""
    others: tuple[str, ...] = ()
    """Other processes on it, as nvidia-smi names them."""

    @property
    def shared(self) -> bool:
        """True where something else uses the card."""
        return bool(self.others) or self.total - self.free > FOREIGN


def refusal(card: Card, items: tuple[Item, ...], *, shared: bool) -> str:
    """One line that says why nothing can be measured on this card; empty where it can."""
    if "driver" in card.problem.lower() and "old" in card.problem.lower():
        return f"the driver is too old for this torch: {card.problem}; update it, or install a torch for an older CUDA"
    if card.problem:
        return f"no CUDA device: {card.problem}; run this on an NVIDIA card, or on the CPU with --tiny"
    major, minor = card.capability
    if card.capability < LEAST_CAPABILITY:
        return f"{card.name} has compute capability {major}.{minor}: the kernels need 8.0 (A100, RTX 30) or more"
    if card.built_for and not _has_code(card):
        return (
            f"this torch has no machine code for compute capability {major}.{minor} of {card.name}, only for "
            f"{', '.join(card.built_for)}: install a torch built for it"
        )
    if card.shared and not shared:
        who = ", ".join(card.others) or f"{card.total - card.free:.1f} GB are in use"
        return f"another process is on {card.name} ({who}): times would be wrong; stop it, or pass --shared"
    if (least := min(item.gigabytes for item in items)) > card.free:
        return f"{card.name} has {card.free:.1f} GB free of {card.total:.1f}: the smallest item needs {least:g} GB"
    return ""


def _has_code(card: Card) -> bool:
    """Machine code runs on later minor versions; ``compute_`` code is compiled for any later card."""
    major, minor = card.capability
    for built in card.built_for:
        kind, _, number = built.partition("_")
        digits = "".join(filter(str.isdigit, number))
        other = int(digits[:-1] or 0), int(digits[-1:] or 0)
        if (kind == "sm" and other[0] == major and other[1] <= minor) or (
            kind == "compute" and other <= (major, minor)
        ):
            return True
    return False


def missing(item: Item, card: Card | None) -> str:
    """Why an item is skipped on this card, or on the CPU (None); empty where it is run."""
    if absent := [name for name in item.needs if not importlib.util.find_spec(name)]:
        return f"{', '.join(absent)} is not installed"
    if card and item.gigabytes > card.free:
        return f"needs {item.gigabytes:g} GB, {card.free:.1f} are free"
    return ""


def probe(reply: Any) -> None:
    """Send the facts about the first visible device through `reply`; for a process of its own."""
    with contextlib.closing(reply):
        reply.send(asdict(_facts()))


def _facts() -> Card:
    import torch

    others = tuple(_smi("--query-compute-apps=pid,process_name,used_memory"))  # before there is a context of our own
    try:
        torch.cuda.init()
        properties: Any = torch.cuda.get_device_properties(0)
        torch.zeros(1, device="cuda")
        free, total = (count / 1e9 for count in torch.cuda.mem_get_info())
    except (RuntimeError, AssertionError) as error:
        return Card(problem=" ".join(str(error).split(". ")[0].split())[:200] or type(error).__name__)
    return Card(
        name=properties.name,
        capability=(properties.major, properties.minor),
        built_for=tuple(torch.cuda.get_arch_list()),
        free=free,
        total=total,
        driver=_driver(),
        others=others,
    )


def _driver() -> str:
    if lines := _smi("--query-gpu=driver_version"):
        return lines[0]
    with contextlib.suppress(OSError):  # containers may lack nvidia-smi
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
        return next((word for word in words if word[:1].isdigit() and "." in word), "")
    return ""


def _smi(query: str) -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    command = ["nvidia-smi", query, "--format=csv,noheader", "-i", visible]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
