"""Machines that a plan can be made for: cards by their data sheets, the CPU of the measured rows, and this one."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UnknownNameError
from ..roofline import Ceiling, Machine
from .stored import from_json

GB = 1e9
CARDS: Mapping[str, Mapping[str, Any]] = {
    # NVIDIA H100 Tensor Core GPU data sheet, SXM: 989.4 TFLOP/s bf16 without sparsity, 66.9 fp32, 3.35 TB/s, 80 GB
    "h100": {"bfloat16": 989.4e12, "float32": 66.9e12, "bandwidth": 3.35e12, "memory": 80 * GB},
    # NVIDIA H200 Tensor Core GPU data sheet, SXM: arithmetic of the H100, 4.8 TB/s, 141 GB
    "h200": {"bfloat16": 989.4e12, "float32": 66.9e12, "bandwidth": 4.8e12, "memory": 141 * GB},
    # NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM: 312 TFLOP/s bf16, 19.5 fp32, 2,039 GB/s
    "a100": {"bfloat16": 312e12, "float32": 19.5e12, "bandwidth": 2.039e12, "memory": 80 * GB},
    # NVIDIA RTX Blackwell architecture white paper: 209.5 TFLOP/s bf16 with fp32 accumulation and without sparsity,
    # 104.8 fp32, 1,792 GB/s, 32 GB
    "rtx5090": {"bfloat16": 209.5e12, "float32": 104.8e12, "bandwidth": 1.792e12, "memory": 32 * GB},
}
"""Peak FLOP/s by dtype, bytes a second and bytes of memory. fp32 is that of the ordinary cores: torch's default."""
CARD_LAUNCH = 5e-6
"""Seconds of the host for an operation of eager PyTorch; no data sheet has it: a guess until a card is measured."""
CPU = Path(__file__).with_name("cpu.json")
"""Ceilings of the CPU of the committed rows, fitted to their unchanged models alone; by dtype and threads."""
NAMES = (*CARDS, "cpu", "this")


def machine(name: str, dtype: str, threads: int) -> Machine:
    """The machine that ``--device`` names, for a dtype; on CPUs, for so many threads.

    Raises:
        UnknownNameError: there is none of that name; the message lists all.
        ValueError: nothing is known of it for this dtype or number of threads.
    """
    if name == "this":
        from . import this

        return this.machine(dtype, threads)
    if name == "cpu":
        return cpu(dtype, threads)
    if name not in CARDS:
        raise UnknownNameError(f"no device is called {name!r}: there are {', '.join(NAMES)}")
    card = CARDS[name]
    peak = Ceiling(flops=card["bfloat16" if dtype == "float16" else dtype], bandwidth=card["bandwidth"])
    return Machine(
        name=name, ceilings={"matmul": peak}, launch=CARD_LAUNCH, memory=card["memory"], source="its data sheet's peaks"
    )


def cpu(dtype: str, threads: int) -> Machine:
    """The CPU of the committed rows.

    Raises:
        ValueError: no rows were measured in this dtype with so many threads.
    """
    known = json.loads(CPU.read_text(encoding="utf-8"))
    if (key := f"{dtype}-{threads}") not in known:
        raise ValueError(
            f"no row was measured in {dtype} with {threads} threads, so --device cpu has no ceilings for it; "
            f"there are {', '.join(known)}; or take --device this"
        )
    return from_json("cpu", known[key])


def machine_of_rows(device: str) -> Callable[[str, int], Machine]:
    """The machine that measured rows are predicted for, by their dtype and threads."""
    return functools.cache(lambda dtype, threads: machine(device, dtype, threads))
