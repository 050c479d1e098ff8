"""Flags: one tyro interface over several dataclasses, composed when the verb and the names are known."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from ..errors import FewstepError

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Group:
    """A dataclass whose fields become flags."""

    title: str
    """Heading in ``--help``."""
    cls: type
    prefix: str = ""
    """``task``: a field whose name an earlier group has already is typed ``--task.name``."""
    hidden: bool = False
    """No flags, but its names stay taken, so that those of later groups do not change."""
    default: Callable[[], Any] | None = None
    """Makes an instance whose values are the defaults; None for those of the class."""


def parse(prog: str, description: str, words: Sequence[str], groups: Sequence[Group]) -> list[Any]:
    """Parse `words` into one instance for each group, None for a hidden one; ``--help`` prints and exits.

    Raises:
        FewstepError: a flag is unknown, missing or has a wrong value; all of it in one line.
    """
    import tyro

    fields: dict[str, Any] = {}
    shown: list[tuple[str, type] | None] = []
    taken: set[str] = set()
    for number, group in enumerate(groups):
        title = re.sub(r"\W", "_", group.title)
        title = f"{title}_{number}" if title in fields else title
        if not group.hidden:
            fields[title] = _shown(group, taken)
        shown.append(None if group.hidden else (title, group.cls))
        taken |= {field.name for field in dataclasses.fields(group.cls)}
    composed = dataclasses.make_dataclass("Flags", [(name, *field) for name, field in fields.items()], kw_only=True)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _plain_terminal():
            flags = tyro.cli(composed, args=list(words), prog=prog, description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise FewstepError(_one_line(said.getvalue())) from None
    made = [_plain(one[1], getattr(flags, one[0])) if one else None for one in shown]
    for one in made:
        _check_numbers(one)
    return [
        dataclasses.replace(one, **_tables(group)) if one and group.default else one
        for one, group in zip(made, groups, strict=True)
    ]


def peek(words: Sequence[str], flag: str) -> str | None:
    """The value of ``--flag`` before anything is parsed: some flags decide which others there are."""
    return take(words, flag)[0]


def take(words: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of ``--flag`` or ``--flag=value``, None where it is not there, and the words without both."""
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag:
            after = index + 1 if equals else index + 2
            return value if equals else next(iter(words[index + 1 : after]), None), [*words[:index], *words[after:]]
    return None, list(words)


def assignments(parts: Sequence[str]) -> list[str]:
    """Flags from ``name=value`` pairs: ``entry=18,21 offload`` is typed ``--entry 18 21 --offload``."""
    pairs = [part.partition("=") for part in parts]
    return [word for name, _, value in pairs for word in (f"--{name}", *(value.split(",") if value else []))]


def _shown(group: Group, taken: set[str]) -> tuple[Any, dataclasses.Field]:
    """The field of a group in what tyro parses."""
    import tyro

    cls = _renamed(group, taken)
    hints = typing.get_type_hints(cls)
    if any(dataclasses.is_dataclass(hint) for hint in hints.values()):
        kind = Annotated[cls, tyro.conf.arg(name="")]  # names inside names stay: --student.lr
    else:
        kind = tyro.conf.OmitArgPrefixes[cls]  # type: ignore[index]
    return kind, dataclasses.field(default_factory=lambda: _typed(group)) if group.default else dataclasses.field()


def _tables(group: Group) -> dict[str, Any]:
    """Long tables of the default, which rows leave out too: no one types them."""
    default = group.default() if group.default else None
    fields = dataclasses.fields(group.cls)
    return {field.name: getattr(default, field.name) for field in fields if not field.metadata.get("row", True)}


def _typed(group: Group) -> Any:
    """The default with the class's own values in place of its long tables."""
    default = group.default() if group.default else group.cls()
    names = list(_tables(group))
    return dataclasses.replace(default, **{name: getattr(group.cls(), name) for name in names}) if names else default


def _renamed(group: Group, taken: set[str]) -> type:
    """The class itself, or one like it whose clashing fields are typed with the prefix of the group."""
    import tyro

    clashes = [field for field in dataclasses.fields(group.cls) if field.init and field.name in taken]
    if not clashes:
        return group.cls
    hints = typing.get_type_hints(group.cls, include_extras=True)
    fields = [
        (field.name, Annotated[hints[field.name], tyro.conf.arg(name=f"{group.prefix}.{field.name}")], _copy(field))
        for field in clashes
    ]
    frozen = group.cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    return dataclasses.make_dataclass(group.cls.__name__, fields, bases=(group.cls,), frozen=frozen)


def _copy(field: dataclasses.Field) -> Any:
    kept = ("default", "default_factory", "kw_only", "compare", "repr", "metadata")
    return dataclasses.field(**{name: getattr(field, name) for name in kept})


def _plain(cls: type, parsed: Any) -> Any:
    """An instance of `cls` itself, also where a class with other flag names was parsed."""
    if type(parsed) is cls:
        return parsed
    return cls(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(cls) if field.init})


@contextlib.contextmanager
def _plain_terminal() -> Iterator[None]:
    """Keep tyro from escape codes where NO_COLOR asks for none: it heeds the kind of terminal only."""
    kind = os.environ.get("TERM")
    try:
        if os.environ.get("NO_COLOR"):
            os.environ["TERM"] = "dumb"
        yield
    finally:
        os.environ.pop("TERM", None)
        os.environ.update({} if kind is None else {"TERM": kind})


def _check_numbers(options: Any, prefix: str = "") -> None:
    """Refuse what no field means: NaN, infinity, and whole numbers of more than 64 bits.

    Raises:
        FewstepError: a field holds one; the message names its flag.
    """
    for field in dataclasses.fields(options) if dataclasses.is_dataclass(options) else ():
        value, flag = getattr(options, field.name), f"{prefix}{field.name}".replace("_", "-")
        _check_numbers(value, f"{flag}.")
        if value == field.default:
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise FewstepError(f"--{flag} {number}: a finite number is needed")
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise FewstepError(f"--{flag} {number}: a whole number of at most 64 bits is needed")


def _one_line(box: str) -> str:
    """The text of tyro's error box without its frame and its pointer to ``--help``."""
    lines = [line.strip(" │|") for line in _ANSI.sub("", box).splitlines() if not line.startswith(("╭", "╰", "+"))]
    parts = [part.strip() for part in re.split(r"[─-]{9,}", " ".join(line for line in lines if line))]
    return "; ".join(part for part in parts if part and not part.startswith("For full helptext"))
