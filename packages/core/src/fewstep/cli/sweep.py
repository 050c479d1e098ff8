"""A number of the method given as a list: one arm for each value, of every method in the run that has it."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence

from ..errors import FewstepError
from ..method import Method
from .flags import peek

Sweep = Mapping[str, Sequence[float]]
"""Values by field."""


def taken(cls: type, words: list[str]) -> tuple[Sweep, list[str]]:
    """Take flags like ``--target 0.5,0.75`` of number fields of `cls` out of `words`; returns them and the rest.

    Raises:
        FewstepError: a value of the list is no number.
    """
    hints, found = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        flag = f"--{field.name.replace('_', '-')}"
        said = peek(words, flag)
        if said is None or "," not in said or hints[field.name] not in (int, float):
            continue
        try:
            found[field.name] = [hints[field.name](value) for value in said.split(",")]
        except ValueError as error:
            raise FewstepError(f"{flag} takes a number or a list of them, found {said!r}") from error
        words = _without(words, flag)
    return found, words


def _without(words: list[str], flag: str) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in words:
        name, equals, _ = word.partition("=")
        if skip or name.replace("_", "-") == flag:
            skip = not skip and not equals
            continue
        kept.append(word)
    return kept


def spread(methods: Sequence[Method], sweep: Sweep) -> list[Method]:
    """Each method once for every value of its fields in `sweep`; methods without such a field as they are."""
    for name, values in sweep.items():
        methods = [
            dataclasses.replace(method, **{name: value}) if value is not None else method
            for method in methods
            for value in (values if name in {f.name for f in dataclasses.fields(method)} else (None,))  # type: ignore[arg-type]
        ]
    return list(methods)
