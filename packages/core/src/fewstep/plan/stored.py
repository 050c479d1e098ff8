"""Machines as JSON: in the file of the CPU that rows were measured on, and in the cache folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..roofline import Ceiling, Machine


def from_json(name: str, fields: Mapping[str, Any]) -> Machine:
    """A machine as `to_json` stored it."""
    ceilings = {
        kind: Ceiling(flops=flops, bandwidth=bandwidth) for kind, (flops, bandwidth) in fields["ceilings"].items()
    }
    values: dict[str, Any] = {**fields, "ceilings": ceilings}
    return Machine(name=name, **values)


def to_json(machine: Machine) -> dict[str, Any]:
    """A machine as JSON; ceilings are pairs of FLOP/s and bytes a second."""
    fields = {key: value for key, value in vars(machine).items() if key != "name"}
    return {**fields, "ceilings": {kind: [c.flops, c.bandwidth] for kind, c in machine.ceilings.items()}}
