"""Lists of numbers as fields of methods: one arm for each value, of every method in the run that has the field."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence

from ..errors import FewstepError
from ..method import Method
from .flags import take

Sweep = Mapping[str, Sequence[float]]
"""Values by field."""


def take_sweep(cls: type, words: Sequence[str]) -> tuple[Sweep, list[str]]:
    """Flags like ``--target 0.5,0.75`` of number fields of `cls`, and the other words.

    Raises:
        FewstepError: a value of the list is no number.
    """
    hints, sweep, rest = typing.get_type_hints(cls), {}, list(words)
    for field in dataclasses.fields(cls):
        flag = f"--{field.name.replace('_', '-')}"
        value, others = take(rest, flag)
        if value is None or "," not in value or hints[field.name] not in (int, float):
            continue
        try:
            sweep[field.name] = [hints[field.name](number) for number in value.split(",")]
        except ValueError as error:
            raise FewstepError(f"{flag} takes a number or a list of them, found {value!r}") from error
        rest = others
    return sweep, rest


def spread(methods: Sequence[Method], sweep: Sweep) -> list[Method]:
    """Each method once for every value of its fields in `sweep`; methods without such a field as they are."""
    for name, values in sweep.items():
        methods = [
            dataclasses.replace(method, **{name: value}) if value is not None else method
            for method in methods
            for value in (values if name in {f.name for f in dataclasses.fields(method)} else (None,))  # type: ignore[arg-type]
        ]
    return list(methods)
