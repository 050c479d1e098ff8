"""``fewstep export``: a saved method in a format of other programs, one of those that its class names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..cards import Card
from ..errors import FewstepError
from ..method import Method
from ..plugins import find
from .flags import Group, parse, peek
from .options import quiet


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Method, format and folder."""

    method: Annotated[str, tyro.conf.Positional]
    """A saved method: the folder of `save_pretrained`, `fewstep fit` or `fewstep train`, or a hub id."""
    format: str
    """The format; `fewstep show NAME` lists those of a method."""
    out: Path | None = None
    """Output folder; default: one named after the format, inside the method's or in the current folder."""


def export(words: list[str]) -> int:
    """Write the files and print their folder.

    Raises:
        FewstepError: there is no saved method, no format of that name, or a flag is wrong.
    """
    quiet()
    usage = "fewstep export METHOD --format FORMAT [--out FOLDER] [flags of the format]"
    if not words or words[0].startswith("-"):
        if set(words) & {"-h", "--help"}:
            print(f"usage: {usage}\n\n`fewstep show NAME` lists the formats of a method")
            return 0
        raise FewstepError(f"`fewstep export` needs a saved method first: {usage}")
    method = Method.from_pretrained(words[0])
    card = _format(method, peek(words, "--format"))
    groups = [Group("export", ExportOptions), Group(card.name, card.load(), "format")]
    options, writer = parse(f"fewstep export {method.name}", card.summary, words, groups)
    inside = Path(options.method) if Path(options.method).is_dir() else Path()
    out = options.out or inside / card.name
    for note in writer(method, out):
        print(note)
    print(f"wrote {out}")
    return 0


def _format(method: Method, name: str | None) -> Card:
    cards = {card.name: card for card in method.formats}
    if not cards:
        raise FewstepError(f"{method.name} has no format of other programs; what is saved is all there is")
    if name is None:
        raise FewstepError(f"`fewstep export` needs --format; formats of {method.name}: {', '.join(cards)}")
    return find(cards, name, f"format of {method.name}")
