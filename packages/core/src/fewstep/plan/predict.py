"""Which installed methods apply to a model, what each is predicted to give, and what a stack of them gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import plugins
from ..cards import Card, import_target
from ..errors import UnsupportedModelError
from ..roofline import Cost, Machine, Phase, Plan, Spent, Workload, time, total
from .models import Parts


@dataclass(frozen=True)
class Planned:
    """One method, or a stack of several, on one model."""

    name: str
    seams: frozenset[str]
    plan: Plan

    def gain(self, machine: Machine) -> float:
        """Seconds of a request without over those with it."""
        return total(self.plan.before.phases, machine) / total(self.plan.after.phases, machine)


@dataclass(frozen=True)
class Line:
    """One phase, or all of them, without and with a method: what a table shows."""

    phase: str
    runs: tuple[float, float]
    """Runs for each request, without and with it; 0 where there is no such phase."""
    before: Spent | None
    after: Spent | None


def applicable(
    parts: Parts, work: Workload, settings: Mapping[str, Sequence[Any]] | None = None
) -> tuple[list[Planned], dict[str, str]]:
    """The methods that apply, and by name why the others do not.

    Args:
        parts: configurations of the model.
        work: one request.
        settings: by the name of a method, the methods to plan instead of its defaults.

    Raises:
        ValueError: the request does not fit the model.
    """
    found, refused = [], {}
    for card in plugins.methods().values():
        if card.plan is None or card.role != "method":
            continue
        chosen = (settings or {}).get(card.name) or (card.load()(),)
        try:
            found += [planned(card, method, parts, work) for method in chosen]
        except UnsupportedModelError as error:
            refused[card.name] = str(error)
    return found, refused


def planned(card: Card, method: Any, parts: Parts, work: Workload) -> Planned:
    """Plan one method, named with the fields that differ from its defaults; raises as its `Planner`."""
    from ..bench.formatting import compact
    from ..bench.record import config

    name = f"{card.name} {compact(config(method))}".strip()
    return Planned(name, type(method).seams, import_target(card.plan or "")(method, parts, work))


def stack(found: Sequence[Planned], machine: Machine) -> Planned | None:
    """The methods that can be applied together, the one that gains most first; None where that is one or none."""
    chosen: list[Planned] = []
    for one in sorted(found, key=lambda one: -one.gain(machine)):
        if one.gain(machine) > 1 and not any(one.seams & other.seams for other in chosen):
            chosen.append(one)
    if len(chosen) < 2:
        return None
    cost = chosen[0].plan.before
    for one in chosen:
        cost = replaced(cost, one.plan)
    seams = frozenset[str]().union(*(one.seams for one in chosen))
    return Planned(" + ".join(one.name for one in chosen), seams, Plan(before=chosen[0].plan.before, after=cost))


def replaced(cost: Cost, plan: Plan) -> Cost:
    """`cost` with the phases and the memory that `plan` changes in place of those of the same name."""
    before = {phase.name: phase for phase in plan.before.phases}
    after = {phase.name: phase for phase in plan.after.phases}
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    kept = [phase.name for phase in cost.phases]
    names = [*kept, *(name for name in after if name not in kept)]
    own = {phase.name: phase for phase in cost.phases}
    phases = [after.get(name) if name in changed else own.get(name) for name in names]
    fresh = {name: size for name, size in plan.after.memory.items() if plan.before.memory.get(name) != size}
    gone = set(plan.before.memory) - set(plan.after.memory)
    memory = {name: size for name, size in {**cost.memory, **fresh}.items() if name not in gone}
    return Cost(phases=tuple(phase for phase in phases if phase is not None), memory=memory)


def lines(plan: Plan, machine: Machine) -> list[Line]:
    """The phases of a plan in order, those that only one side has too."""
    before = {phase.name: phase for phase in plan.before.phases}
    after = {phase.name: phase for phase in plan.after.phases}
    return [_line(name, before.get(name), after.get(name), machine) for name in before | after]


def _line(name: str, before: Phase | None, after: Phase | None, machine: Machine) -> Line:
    runs = tuple(phase.times if phase else 0.0 for phase in (before, after))
    spent = [time(phase, machine) if phase else None for phase in (before, after)]
    return Line(name, (runs[0], runs[1]), spent[0], spent[1])
