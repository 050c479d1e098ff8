"""``fewstep show``: one card with its fields, their defaults and meaning, and what was measured."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

from ..bench import measured
from ..bench.rows import DENSE, read
from ..cards import Card, import_target
from ..errors import BadFileError, FewstepError
from .listing import KINDS
from .options import named
from .outline import Outline, Unread, outline
from .table import show_rows, show_table

RESULTS = Path("results")


def show(words: list[str]) -> int:
    """Print everything about one name; a name that several kinds share is shown for each."""
    by_kind = {kind: collect() for kind, collect in KINDS.items()}
    everything = {name: card for cards in by_kind.values() for name, card in cards.items()}
    card, rest = named("show", words, "name", everything)
    if rest and set(rest) & {"-h", "--help"}:
        print(
            "usage: fewstep show NAME [--model FOLDER]\n\n"
            "fields with defaults and meaning, supported models, and rows in ./results;\n"
            "with a model's folder, what the method would do with that model: only its config.json is read"
        )
        return 0
    if rest[:1] == ["--model"] and len(rest) == 2:
        return _describe(card, Path(rest[1]).expanduser())
    if rest:
        raise FewstepError(f"`fewstep show` takes one name and --model FOLDER, found {' '.join(rest)!r} after the name")
    for kind, cards in by_kind.items():
        if card.name in cards:
            _show(kind, cards[card.name])
    return 0


def _describe(card: Card, folder: Path) -> int:
    """Print what the card's `Describer` tells of the model in `folder`."""
    if card.show is None:
        raise FewstepError(f"{card.name} says nothing about single models; leave --model out")
    describe = import_target(card.show)
    show_table(f"{card.name} on {folder}", ("", "finding"), describe(model_config(folder), folder))
    return 0


def model_config(folder: Path) -> Any:
    """The configuration of the model in `folder`: transformers' object where it knows the model type, else a dict.

    Raises:
        BadFileError: there is no ``config.json``, or it is damaged.
    """
    file = folder / "config.json"
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadFileError(f"{folder} is not a model folder: {file.name} cannot be read there") from error
    except ValueError as error:
        raise BadFileError(f"{file} is damaged: {error}") from error
    try:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ImportError, ValueError, KeyError):  # a model type that the installed transformers does not have
        return plain


def _show(kind: str, card: Card) -> None:
    print(f"{card.name} ({kind.removesuffix('s')}): {card.summary}")
    if card.paper:
        print(f"paper: https://arxiv.org/abs/{card.paper}")
    if card.models:
        print(f"models: {', '.join(card.models)}")
    try:
        _show_outline(kind, outline(card.target))
    except Unread:
        _show_imported(kind, card.load())
    if kind in ("methods", "recipes") and (lines := measured.shipped(card)):
        show_table("measured, the best setting of each task", measured.HEADER, lines)
    if kind in ("methods", "tasks"):
        _show_measured(kind, card.name)


def _show_outline(kind: str, read: Outline) -> None:
    """What the source of the target says."""
    if kind == "methods":
        if "formats" in read.constants or not read.words("seams"):
            raise Unread("formats are made by code")
        print(f"occupies: {', '.join(read.words('seams'))}")
    print(f"\n{read.doc}\n")
    if read.fields:
        lines = [(name, default, meaning) for name, (default, meaning) in read.fields.items()]
        show_table("fields", ("field", "default", "meaning"), lines)


def _show_imported(kind: str, target: Any) -> None:
    """What the target itself says, where its source does not: functions, formats, computed defaults."""
    if kind == "methods":
        print(f"occupies: {', '.join(sorted(target.seams))}")
        for written in target.formats:
            print(f"exports to {written.name}: {written.summary}")
    print(f"\n{inspect.getdoc(target) or ''}\n" if inspect.isclass(target) or inspect.isfunction(target) else "")
    if kind == "recipes" and not inspect.isclass(target):
        show_table("fields", ("field", "value", "meaning"), fields(type(chosen := target()), chosen))
    elif dataclasses.is_dataclass(target) and isinstance(target, type):
        show_table("fields", ("field", "default", "meaning"), fields(target))


def fields(cls: type, values: Any = None) -> list[tuple[str, str, str]]:
    """Name, default (or the value that `values` has) and meaning of every field of a dataclass."""
    documented = docstrings(cls)
    return [
        (field.name, repr(getattr(values, field.name)) if values else _default(field), documented.get(field.name, ""))
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
    ]


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else repr(field.default)


def docstrings(cls: type) -> dict[str, str]:
    """The string below each field in the source of `cls` and its bases, each in one line."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            body: list[Any] = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        except (OSError, TypeError):  # made at run time: it has no source
            continue
        for field, below in zip(body, body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                texts[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return texts


def _show_measured(kind: str, name: str) -> None:
    if not RESULTS.is_dir():
        return
    rows = [row for row in read(RESULTS) if kind == "methods" or row.task == name]
    runs = {row.run for row in rows if kind == "tasks" or row.method == name}
    wanted = [row for row in rows if row.run in runs and (kind == "tasks" or row.method in (name, DENSE))]
    if wanted:
        print(f"measured (the newest run of each arm in {RESULTS}/):\n")
        show_rows(wanted)
