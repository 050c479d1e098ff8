"""Time unit-score against its specification and against reading K once, in interleaved pairs on this machine.

``python benchmarks/bench_unit_score.py --tokens 8192`` prints medians and ratios; no speed when a check is red.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch
from fewstep.kernels import Result
from fewstep.kernels.check import numerics
from fewstep.kernels.unit_score import KERNEL, SCORES, unit_score
from side_by_side import interleaved, pair_ratio

SIZES = ((64, 8), (1, 1))
"""Tokens in a block and in a unit: the paper's, and one-token units."""


def gate(backend: str, device: str) -> Result:
    """Compare the backend with the specification on this device; nothing is timed unless this is ok."""
    return numerics(KERNEL, backend, device)


def main() -> int:
    """Run the benchmark; exit code 1 when the backend is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--heads", type=int, nargs=3, default=(9, 3, 64), metavar=("QUERY", "KV", "DIM"))
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = KERNEL.chosen_backend(device)
    if not (result := gate(backend, device)).ok:
        print(f"{backend} is wrong, nothing timed: {result.detail}", file=sys.stderr)
        return 1
    h, g, d = options.heads
    print(f"{backend} on {device}, {torch.get_num_threads()} threads, h={h} g={g} d={d} t={options.tokens}")
    print(f"{'dtype':9}{'block':>6}{'unit':>5}  {'score':13}{'median':>9}{'naive/fast':>12}{'fast/read K once':>18}")
    for dtype in (torch.float32, torch.bfloat16):
        query = torch.randn(h, d, device=device, dtype=dtype)
        keys = torch.randn(g, options.tokens + 64, d, device=device, dtype=dtype)[:, : options.tokens]
        for (block, unit), score in ((size, score) for size in SIZES for score in SCORES):
            arguments = {"block": block, "unit": unit, "score": score}
            calls = {
                "naive": lambda q=query, k=keys, a=arguments: unit_score(q, k, backend="naive", **a),
                "fast": lambda q=query, k=keys, a=arguments: unit_score(q, k, backend=backend, **a),
                "read": lambda k=keys: k.view(torch.int32).amax(),
            }
            times = interleaved(calls, device, options.repeats)
            median = statistics.median(times["fast"]) * 1e6
            ratios = pair_ratio(times["naive"], times["fast"]), pair_ratio(times["fast"], times["read"])
            line = f"{str(dtype)[6:]:9}{block:6}{unit:5}  {score:13}{median:6.0f} us"
            print(f"{line}{ratios[0]:12.2f}{ratios[1]:18.2f}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
