"""Soak: kills at random moments, damaged files, apply and remove in random order; counts of what went wrong.

``python scripts/soak.py`` runs everything; ``--kills 20 --damages 200 --sequences 20`` a taste of it. Not part of the
tests; it runs nightly. The last lines are the figures, and the exit code is 1 where anything went wrong.
``--results results`` appends them as rows as well.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from soak_parts.damages import damages
from soak_parts.kills import kills
from soak_parts.process import Outcome, prepare
from soak_parts.sequences import sequences

PARTS: dict[str, Callable[[int, random.Random, Path], Outcome]] = {
    "kills": kills,
    "damages": damages,
    "sequences": sequences,
}
COUNTS = {"kills": 1000, "damages": 10_000, "sequences": 1000}


def main() -> int:
    """Run the parts, print their figures as JSON, and return 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"(default: {count})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder that rows of the figures are appended to")
    args = parser.parse_args()
    prepare()
    wrong = 0
    for name, part in PARTS.items():
        if not getattr(args, name):
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            os.environ["FEWSTEP_CACHE"] = str(Path(folder) / "cache")
            seen = part(getattr(args, name), random.Random(args.seed), Path(folder))
        wrong += sum(number for what, number in seen.items() if what.startswith("wrong"))
        seconds = round(time.perf_counter() - start)
        print(json.dumps({"part": name, "seconds": seconds, **dict(sorted(seen.items()))}), flush=True)
        if args.results is not None:
            append_rows(name, seen, args)
    return 1 if wrong else 0


def append_rows(part: str, seen: Mapping[str, int], args: argparse.Namespace) -> None:
    """Append each count of a part as a row of the task ``soak``."""
    import torch
    from fewstep.bench.rows import Row, append
    from fewstep.bench.settings import Settings

    settings = Settings(repeats=1, threads=1, results=args.results, command=shlex.join(["python", *sys.argv]))
    settings.prepare()
    head = {
        "task": "soak",
        "model": "tiny",
        "params": {"seed": args.seed, "count": getattr(args, part)},
        "run": settings.provenance("random", torch.device("cpu"), "float32"),
    }
    rows = [Row(**head, method=part, metric=what, value=number, unit="") for what, number in sorted(seen.items())]
    append(rows, args.results / "soak.jsonl")


if __name__ == "__main__":
    raise SystemExit(main())
