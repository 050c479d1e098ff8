"""Check and measure every kernel and method on the NVIDIA card at hand, by value, within some minutes.

``python benchmarks/gpu.py --minutes 9 --out gpu-results`` writes rows as it goes (JSON lines), a log of each item, and
a page ``summary.md``. Exit code 0 when everything that was run is right, 1 when a check is red or an item crashed, 2
with one line when nothing can be run here. Clocks and settings of the card are left alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from gpu_items import ITEMS, Item
from gpu_items.card import Card, missing, probe, refusal
from gpu_items.worker import Ended, answer, context, run

LEAST = 0.3
"""Share of an item's seconds that must be left to begin it."""
BAD = ("wrong", "crashed")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--minutes", type=float, default=9.0, help="for everything (default: 9)")
    made.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of rows, logs and summary")
    made.add_argument("--only", nargs="+", metavar="NAME", help="items to run, in the order of the list")
    made.add_argument("--list", action="store_true", help="list the items and end")
    made.add_argument("--tiny", action="store_true", help="run every item at a tiny size on the CPU")
    made.add_argument("--shared", action="store_true", help="measure although another process is on the card")
    return made


def chosen(names: list[str] | None, items: tuple[Item, ...]) -> tuple[Item, ...]:
    """The items of these names; all of them without names.

    Raises:
        ValueError: there is no such item.
    """
    known = [item.name for item in items]
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"there is no item {unknown[0]!r}; there are: {', '.join(known)}")
    return tuple(item for item in items if names is None or item.name in names)


def card_of(processes: Any) -> tuple[Card, Any]:
    """The card as a process sees it, and the way to make processes in which it works."""
    for made in (processes, context("spawn")):  # a library may have started the driver where others are forked from
        facts = answer(made, probe, 120.0)
        card = Card(**facts) if facts else Card(problem="a process that asked for the device died")
        if not card.problem:
            break
    return card, made


def run_items(
    processes: Any, items: tuple[Item, ...], card: Card | None, options: argparse.Namespace
) -> dict[str, Ended]:
    """Run items until the time is over, a line each; `card` is None on the CPU. Those that were come to, by name."""
    began, ended = time.time(), {}
    setup = {
        "out": str(options.out),
        "tiny": card is None,
        "driver": card.driver if card else "",
        "shared": bool(card and card.shared),
        "command": shlex.join(["python", *sys.argv]),
    }
    for item in items:
        left = began + 60 * options.minutes - time.time()
        seconds = min(item.seconds, left)
        if reason := missing(item, card):
            end = Ended(outcome="skipped", reason=reason)
        elif seconds < LEAST * item.seconds:
            end = Ended(outcome="skipped", reason=f"{max(left, 0):.0f} s are left of {options.minutes:g} minutes")
        else:
            log = options.out / "logs" / f"{item.name}.log"
            end = run(processes, item.target, {**setup, "item": item.name, "ends": time.time() + seconds}, log, seconds)
        ended[item.name] = end
        record(item, end, card, setup)
        print(f"{item.name:12} {end.outcome:13} {end.seconds:5.1f} s  {end.reason}", flush=True)
    return ended


def record(item: Item, end: Ended, card: Card | None, setup: dict[str, Any]) -> None:
    """Write the row of an item's end."""
    import torch
    from fewstep.bench.rows import Row, append
    from fewstep.bench.settings import Settings
    from gpu_items.summary import OWN

    settings = Settings(results=Path(setup["out"]), allow_dirty=True, command=setup["command"])
    run = settings.provenance("random", torch.device("cpu"), "bfloat16")  # this process must not touch the device
    run = dataclasses.replace(run, device=card.name, hardware="cuda") if card else run
    params = {"outcome": end.outcome, "reason": end.reason}
    head = {"task": OWN, "model": "", "method": item.name, "metric": "seconds", "unit": "s", "params": params}
    append([Row(**head, value=end.seconds, run=run)], settings.results / f"{OWN}.jsonl")


def main() -> int:
    """Run the command; see the module's documentation for the exit codes."""
    options = parser().parse_args()
    try:
        items = chosen(options.only, ITEMS)
        if options.minutes <= 0:
            raise ValueError(f"--minutes must be positive, found {options.minutes:g}")
        (options.out / "logs").mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.list:
        print(*(f"{item.name:12} {item.seconds:3} s {item.gigabytes:4g} GB  {item.proves}" for item in items), sep="\n")
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    processes, card = context(), None
    if not options.tiny:
        card, processes = card_of(processes)
        if line := refusal(card, items, shared=options.shared):
            print(f"error: {line}", file=sys.stderr)
            return 2
    ended = run_items(processes, items, card, options)
    from gpu_items.summary import write_summary

    name = f"{card.name}, driver {card.driver}" if card else "The CPU, tiny sizes: no measurement"
    print(write_summary(options.out, name, items, ended))
    return int(any(end.outcome in BAD for end in ended.values()))


if __name__ == "__main__":
    raise SystemExit(main())
