"""``fewstep plan``: what methods are predicted to give for a model on a machine, from its configuration alone."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import plugins
from ..bench.formatting import compact
from ..bench.settings import available_cores
from ..errors import FewstepError
from ..plan import check, machines
from ..plan.models import parts_of
from ..plan.predict import Planned, applicable, lines, stack
from ..plan.stored import to_json
from ..roofline import Machine, Plan, Spent, Workload, memory, total
from .flags import Group, assignments, parse
from .options import method_group, quiet
from .table import show_table

ABOUT = """What the installed methods are predicted to give for a model on a machine, from its configuration alone: no
weights, no network.

  fewstep plan --model meta-llama/Llama-3.1-8B-Instruct --device h100 --length 32768
  fewstep plan --model Wan-AI/Wan2.1-T2V-14B-Diffusers --device rtx5090      # several methods, and all of them together
  fewstep plan --model my-model/ --device this --also "modes target=0.88"    # a folder; this machine, measured in 10 s
  fewstep plan --check results --figure plan.svg                             # predictions beside measured rows

Each phase takes the longer of its arithmetic and its memory traffic at the machine's ceilings, or of the host's
launches where these are more ("bound by"). On cards the ceilings are those of data sheets, so seconds are floors that
nothing reaches; ratios are nearer to the truth."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Workload):
    """The model, the machine, and one request."""

    model: str = ""
    """A hub id that is known here, a name from `fewstep list`, or a folder; a wrong one lists what there is."""
    device: str = ""
    """h100, h200, a100 or rtx5090 (data sheets), cpu (that of the committed rows), this (measured once, in 10 s, and
    the default; with --check it is cpu)."""
    threads: int = field(default_factory=available_cores)
    """CPU threads, of the devices cpu and this."""
    also: tuple[str, ...] = ()
    """Settings of methods in place of their defaults, each in quotes: "modes target=0.88" "slim-infer keep=0.5"."""
    json: bool = False
    """Print JSON instead of a table."""
    check: Path | None = None
    """Folder of measured rows: print predictions beside them instead of a plan."""
    figure: Path | None = None
    """With --check: an SVG or PNG of predicted against measured."""
    record: bool = False
    """With --check: write the predictions, and those of all known models on all cards, to plan.jsonl in that folder."""


def plan(words: list[str]) -> int:
    """Print a plan, or predictions beside measured rows.

    Raises:
        FewstepError: a name or a flag is wrong, or nothing applies.
        ValueError: the request does not fit the model.
    """
    quiet()
    (options,) = parse("fewstep plan", ABOUT, words, [Group("plan", PlanOptions)])
    if options.check is not None:
        return _check(options.check, options, shlex.join(["fewstep", "plan", *words]))
    if not options.model or options.figure or options.record:
        raise FewstepError("`fewstep plan` needs --model, or --check FOLDER, which --figure and --record go with")
    machine = machines.machine(options.device or "this", options.dtype, options.threads)
    names = [one.name for one in dataclasses.fields(Workload)]
    work = Workload(**{name: getattr(options, name) for name in names})
    found, refused = applicable(parts_of(options.model), work, _settings(options.also))
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items()) or "no method is installed"
        raise FewstepError(f"no installed method applies to {options.model}: {reasons}")
    together = stack(found, machine)
    everything = [*found, *([together] if together else [])]
    if options.json:
        print(json.dumps(_as_json(options, everything, refused, machine), indent=2))
    else:
        _show(options, everything, refused, machine)
    return 0


def _settings(also: Sequence[str]) -> dict[str, list[Any]]:
    """Methods with the settings that `also` names, by the name of the method."""
    settings: dict[str, list[Any]] = {}
    for text in also:
        name, _, rest = text.strip().partition(" ")
        card = plugins.find(plugins.methods(), name, "method")
        words = assignments(rest.split())
        settings.setdefault(name, []).append(parse("--also", card.summary, words, [method_group(card, words, "")])[0])
    return settings


def _show(options: PlanOptions, found: Sequence[Planned], refused: dict[str, str], machine: Machine) -> None:
    title = f"{options.model} on {machine.name}, {options.dtype} ({machine.source}); batch {options.batch}"
    table = [line for one in found for line in _block(one, machine)]
    show_table(title, ("method", "phase", "runs", "unchanged", "with it", "gain", "bound by"), table)
    for name, reason in refused.items():
        print(f"does not apply: {name}: {reason}")
    print("memory is that of weights, caches and the largest activations; all numbers are predictions")


def _block(one: Planned, machine: Machine) -> list[tuple[str, ...]]:
    """The lines of one method: its phases, all of them, and memory."""
    rows = [
        ("", line.phase, _runs(*line.runs), _each(line.before), _each(line.after), _gain(line), _bound(line))
        for line in lines(one.plan, machine)
    ]
    before, after = (total(cost.phases, machine) for cost in (one.plan.before, one.plan.after))
    rows.append(("", "all", "", seconds(before), seconds(after), f"{before / after:.2f}x", ""))
    own, less = (memory(cost) for cost in (one.plan.before, one.plan.after))
    rows.append(("", "memory", "", size(own), size(less), f"{own / less:.2f}x", _fits(one.plan, machine)))
    return [(one.name, *rows[0][1:]), *rows[1:]]


def _runs(before: float, after: float) -> str:
    return f"{before:g}" if before == after else f"{before:g} -> {after:g}"


def _each(spent: Spent | None) -> str:
    return seconds(spent.seconds) if spent else "-"


def _gain(line: Any) -> str:
    """Of all runs of a phase; empty where only one side has it."""
    if not line.before or not line.after:
        return ""
    return f"{line.runs[0] * line.before.seconds / (line.runs[1] * line.after.seconds):.2f}x"


def _bound(line: Any) -> str:
    bounds = [spent.bound for spent in (line.before, line.after) if spent]
    return " -> ".join(dict.fromkeys(bounds))


def _fits(plan: Plan, machine: Machine) -> str:
    lacking = [
        name for name, cost in (("unchanged", plan.before), ("with it", plan.after)) if memory(cost) > machine.memory
    ]
    return f"more than the {size(machine.memory)} there are: {', '.join(lacking)}" if lacking else ""


def seconds(value: float) -> str:
    """``1.23 s``, ``45.6 ms``, ``7.89 us``."""
    scale, unit = next(((s, u) for s, u in ((1, "s"), (1e-3, "ms")) if value >= s), (1e-6, "us"))
    return f"{value / scale:.3g} {unit}" if value < 1000 else f"{value:,.0f} s"


def size(value: float) -> str:
    """``12.3 GB``, ``45.6 MB``."""
    return f"{value / 1e9:.3g} GB" if value >= 1e9 else f"{value / 1e6:.3g} MB"


def _as_json(
    options: PlanOptions, found: Sequence[Planned], refused: dict[str, str], machine: Machine
) -> dict[str, Any]:
    names = [one.name for one in dataclasses.fields(Workload)]
    return {
        "model": options.model,
        "request": {name: getattr(options, name) for name in names},
        "machine": {"name": machine.name, **to_json(machine)},
        "methods": [
            {
                "name": one.name,
                "gain": one.gain(machine),
                "phases": [
                    {
                        "name": line.phase,
                        "unchanged": _side(line.runs[0], line.before),
                        "with it": _side(line.runs[1], line.after),
                    }
                    for line in lines(one.plan, machine)
                ],
                "memory": {"unchanged": dict(one.plan.before.memory), "with it": dict(one.plan.after.memory)},
            }
            for one in found
        ],
        "refused": refused,
    }


def _side(runs: float, spent: Spent | None) -> dict[str, Any] | None:
    return {"runs": runs, **dataclasses.asdict(spent), "bound": spent.bound} if spent else None


def _check(results: Path, options: PlanOptions, command: str) -> int:
    from ..bench.tables import load
    from ..plan import figure, record

    rows = [row for row in load(results) if row.task != record.TASK]
    found, refused = check.pairs(rows)
    known = machines.machine_of_rows(options.device or "cpu")
    if not found:
        raise FewstepError(f"no row in {results} is a speed-up that a plan knows: {'; '.join(refused.values())}")
    table = [_compared(one, known) for one in found]
    header = ("method", "task", "of", "setting", "measured", "predicted", "error")
    show_table(f"predicted against measured, {len(found)} speed-ups in {results}", header, table)
    print(f"median error {check.median_error(found, known):.0%}; {_apart(found, known)}")
    for name, reason in refused.items():
        print(f"not predicted: {name}: {reason}")
    if options.figure:
        figure.write(found, known, options.figure)
        print(f"wrote {options.figure}")
    if options.record:
        print(f"wrote {record.write(found, known, results, command)} rows to {results / record.FILE}")
    return 0


def _compared(one: check.Pair, known: check.Machines) -> tuple[str, ...]:
    ratios = f"{one.row.value:.2f}x", f"{one.predicted(known):.2f}x", f"{one.error(known):+.0%}"
    return one.row.method, one.row.task, one.metric, _setting(one), *ratios


def _setting(one: check.Pair) -> str:
    kept = ("length", "gen_length", "batch", "dense", "frames")
    params = {name: value for name, value in one.row.params.items() if name in kept}
    return compact({**one.row.config, **params, "dtype": one.row.run.dtype, "threads": one.row.run.threads})


def _apart(found: Sequence[check.Pair], known: check.Machines) -> str:
    """Errors by method."""
    methods = dict.fromkeys(one.row.method for one in found)
    each = {name: [one for one in found if one.row.method == name] for name in methods}
    return ", ".join(f"{name} {check.median_error(some, known):.0%} of {len(some)}" for name, some in each.items())
