"""Measure the ceilings of this machine in ten seconds: products, attention, convolutions, copies, small operations."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..bench.provenance import device_name
from ..bench.timing import fixed_threads
from ..data.assets import cache_folder
from ..data.files import write_text
from ..roofline import Ceiling, Machine
from .stored import from_json, to_json

SECONDS = 1.2
"""For each of eight measurements; the fastest run counts, since others only ever slow it down."""
SMALL, OPERATIONS = 40, 5
"""Layers in one run of the small-operation loop, and operations of each, views included, as plans count them."""


def machine(dtype: str, threads: int, device: torch.device | None = None) -> Machine:
    """Ceilings of `device` (the GPU, or the CPU where there is none): measured once, then read from a file."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    file = cache_file(device, dtype, threads)
    try:
        return from_json("this", json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: it is measured again
        found = measure(device, dtype, threads)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(to_json(found), indent=2) + "\n")
    return found


def cache_file(device: torch.device, dtype: str, threads: int) -> Path:
    """Where the ceilings are kept, by machine, dtype, threads and version of torch."""
    key = f"{platform.node()}-{device_name(device)}-{dtype}-{threads}-{torch.__version__}"
    return cache_folder() / "machines" / f"{re.sub(r'[^A-Za-z0-9.]+', '-', key)}.json"


@torch.inference_mode()
def measure(device: torch.device, dtype: str, threads: int, *, seconds: float = SECONDS, scale: int = 1) -> Machine:
    """Measure now.

    Args:
        device: CPU or GPU.
        dtype: by name.
        threads: of torch, on a CPU.
        seconds: for each measurement.
        scale: divides the sizes.
    """
    big = device.type == "cuda"
    width = (8192 if big else 2048) // scale
    with fixed_threads(threads):
        make = _maker(device, dtype)
        square = make(width, width)
        compute = 2 * width**3 / _best(lambda: square @ square, device, seconds)
        long, row = make(16 * width, width), make(1, width)
        read = long.nbytes / _best(lambda: row @ long.T, device, seconds)
        copied, onto = make(16 * width * width), make(16 * width * width)
        copy = 2 * copied.nbytes / _best(lambda: onto.copy_(copied), device, seconds)
        ceilings = {
            "matmul": Ceiling(flops=compute, bandwidth=read),
            "elementwise": Ceiling(flops=compute, bandwidth=copy),
            "attention": _attention(make, width, device, seconds),
            **_convolutions(make, width, device, seconds, read),
        }
        launch = _launch(make, device, seconds)
    return Machine(
        name="this",
        ceilings=ceilings,
        launch=launch,
        memory=_memory(device),
        ahead=big,
        source=f"measured on {device_name(device)} in {dtype}, threads {threads}",
    )


def _maker(device: torch.device, dtype: str) -> Callable[..., torch.Tensor]:
    return lambda *shape: torch.full(shape, 0.5, device=device, dtype=getattr(torch, dtype))


def _best(run: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest run, after one that warms up."""
    run()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until or best == float("inf"):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def _attention(make: Callable[..., torch.Tensor], width: int, device: torch.device, seconds: float) -> Ceiling:
    """Arithmetic of many queries, and keys and values that one query reads in a second."""
    heads, size = 8, 64
    query = make(1, heads, width, size)
    many = _best(lambda: F.scaled_dot_product_attention(query, query, query), device, seconds)
    keys, one = make(1, heads, 4 * width, size), make(1, heads, 1, size)
    single = _best(lambda: F.scaled_dot_product_attention(one, keys, keys), device, seconds)
    return Ceiling(flops=4 * heads * width**2 * size / many, bandwidth=2 * keys.nbytes / single)


def _convolutions(
    make: Callable[..., torch.Tensor], width: int, device: torch.device, seconds: float, bandwidth: float
) -> dict[str, Ceiling]:
    side, channels, frames = max(8, width // 32), 64, 4
    images = make(frames, channels, side, side).contiguous(memory_format=torch.channels_last)
    flat, deep = make(channels, channels, 3, 3), make(channels, channels, 3, 3, 3)
    clip = make(1, channels, frames, side, side)
    flops = 2 * frames * channels**2 * side**2 * 9
    return {
        "conv2d": Ceiling(
            flops=flops / _best(lambda: F.conv2d(images, flat, padding=1), device, seconds), bandwidth=bandwidth
        ),
        "conv3d": Ceiling(
            flops=3 * flops / _best(lambda: F.conv3d(clip, deep, padding=1), device, seconds), bandwidth=bandwidth
        ),
    }


def _launch(make: Callable[..., torch.Tensor], device: torch.device, seconds: float) -> float:
    """Seconds of one small operation, called as models call them: modules of 32 numbers, with a residual."""
    row = make(1, 32)
    layer = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.SiLU()).to(row)

    def loop() -> None:
        x = row
        for _ in range(SMALL):
            x = x + layer(x)

    return _best(loop, device, seconds) / (SMALL * OPERATIONS)


def _memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
