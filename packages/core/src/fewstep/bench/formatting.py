"""Numbers, metrics and configurations of rows in words: for tables, figures and the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from .rows import Row

SPEEDUP = "_speedup"
QUALITY = {
    "accuracy": True,
    "kept": True,
    "frechet": False,
    "top1_agreement": True,
    "psnr": True,
    "ssim": True,
    "kl": False,
    "nll_gap": False,
    "consistency": True,
    "noise": False,
}
"""Quality metrics, the most telling first; True where higher is better."""
_LABELS = {
    "ttft": "time to first token",
    "kept": "kept of what dense answers",
    "top1_agreement": "top-1 agreement",
    "frechet": "Frechet distance",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "kl": "KL to dense",
    "nll_gap": "NLL gap",
    "skipped_share": "skipped pairs",
    "kv_bytes": "KV memory",
    "peak_rss_bytes": "peak memory",
    "peak_cuda_bytes": "peak memory",
}
_SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "B": ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
}


def compact(fields: dict[str, Any]) -> str:
    """``keep=0.5 layers=[1,2]``: a configuration in one line."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}
    return " ".join(f"{key}={text.replace(', ', ',')}" for key, text in texts.items())


def heading(metric: str) -> str:
    """A metric in words: ``time to first token speed-up``."""
    base = metric.removesuffix(SPEEDUP)
    return _LABELS.get(base, base.replace("_", " ")) + (" speed-up" if base != metric else "")


def column(metric: str) -> str:
    """Heading with an arrow up where higher is better and down where lower is: ``accuracy ↑``."""
    known = metric in QUALITY or metric.endswith(SPEEDUP)
    return heading(metric) + (f" {'↑' if QUALITY.get(metric, True) else '↓'}" if known else "")


def better(metric: str) -> str:
    """``higher is better`` or ``lower is better``, of a quality metric."""
    return f"{'higher' if QUALITY[metric] else 'lower'} is better"


def amount(row: Row) -> str:
    """The value in human units: ``480 ms``, ``1.79x``, ``12.5 MiB``."""
    scale, unit = _scale(row)
    return f"{_number(row.value / scale, unit)}{'' if unit == 'x' else ' '}{unit}".strip()


def spread(row: Row) -> str:
    """``[460, 510]`` in the unit of `amount`; empty where there was one repeat or all gave the same."""
    scale, unit = _scale(row)
    if row.spread is None or row.spread[0] == row.spread[1]:
        return ""
    return f"[{', '.join(_number(bound / scale, unit) for bound in row.spread)}]"


def _scale(row: Row) -> tuple[float, str]:
    """Divisor and unit for a value of this size."""
    scales = _SCALES.get(row.unit, ((1.0, row.unit),))
    return next((scale for scale in scales if abs(row.value) >= scale[0]), scales[-1])


def _number(value: float, unit: str) -> str:
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if unit == "x" and abs(value) >= 0.1:
        return f"{value:.2f}"
    if unit == "":
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def verdict(row: Row) -> str:
    """``gain`` or ``loss`` where every repeat of a speed-up says so, else empty."""
    low, high = row.spread or (row.value, row.value)
    return "gain" if low > 1 else "loss" if high < 1 else ""


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """A Markdown table whose first `words` columns are words and the rest numbers; bars in cells are escaped."""
    lines = [header, ["---"] * words + ["---:"] * (len(header) - words), *body]
    return "\n".join(f"| {' | '.join(_escaped(text) for text in line)} |" for line in lines)


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
