"""The text of tiny-llada: sources of the standard library and Python's language reference; a byte tokenizer."""

from __future__ import annotations

import functools
import sysconfig
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

MASK, EOS = 256, 257
VOCABULARY = 258
"""The 256 bytes, each its own token, then MASK and EOS, which is the padding, too."""
Kind = Literal["english", "source"]
Split = Literal["train", "held-out"]
HELD_OUT = 20
"""One of so many files (and topics) is held out."""
SAME = 16
"""Bytes from which on an equal line counts as a quotation."""
SKIPPED = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
"""Folders without text, or with text that repeats that of others."""


@functools.cache
def corpus(kind: Kind, split: Split) -> bytes:
    """All text of a kind, without EOS; a form feed stands between files.

    The names of files and topics alone decide which are held out, so they stay out in other versions of Python, too.
    Lines that are also in held-out text are taken out of the training text: topics quote each other at length.
    """
    files: dict[bool, list[bytes]] = {True: [], False: []}
    for name, text in _files(kind):
        files[zlib.crc32(name.encode()) % HELD_OUT == 0].append(text)
    held_out = b"\f".join(files[True])
    if split == "held-out":
        return held_out
    known = {line.strip() for line in held_out.splitlines() if len(line.strip()) >= SAME}
    whole = b"\f".join(files[False]).splitlines(keepends=True)
    return b"".join(line for line in whole if line.strip() not in known)


def _files(kind: Kind) -> list[tuple[str, bytes]]:
    if kind == "english":
        from pydoc_data.topics import topics

        return [(name, text.encode()) for name, text in sorted(topics.items())]
    root = Path(sysconfig.get_path("stdlib"))
    paths = [file.relative_to(root) for file in sorted(root.rglob("*.py"))]
    return [(path.as_posix(), (root / path).read_bytes()) for path in paths if not SKIPPED & {*path.parts}]


@dataclass(eq=False, kw_only=True)
class TextCrops:
    """Random pieces of text: the data of the recipe."""

    lengths: tuple[int, ...]
    """Lengths of pieces in tokens; each batch has one of them, and as many tokens as one of the longest has."""
    english: float
    """Share of pieces from the language reference; the others are from sources."""
    split: Split = "train"
    uncond: None = None
    shape: tuple[int, ...] = field(init=False)
    """Shape of the longest piece."""

    def __post_init__(self) -> None:
        self.shape = (max(self.lengths),)

    def draw(self, size: int, generator: torch.Generator) -> tuple[Int[Tensor, "b n"], None]:
        """Draw tokens of pieces: `size` of the longest, or more shorter ones."""
        length = self.lengths[int(torch.randint(len(self.lengths), (), generator=generator))]
        count = size * max(self.lengths) // length
        english = torch.rand(count, generator=generator) < self.english
        rows = [self._crop("english" if chosen else "source", length, generator) for chosen in english.tolist()]
        return torch.stack(rows).long(), None

    def _crop(self, kind: Kind, length: int, generator: torch.Generator) -> Tensor:
        everything = tokens(kind, self.split)
        at = int(torch.randint(len(everything) - length, (), generator=generator))
        return everything[at : at + length]


@functools.cache
def tokens(kind: Kind, split: Split) -> Int[Tensor, " n"]:
    """`corpus` as bytes, uint8."""
    return torch.frombuffer(bytearray(corpus(kind, split)), dtype=torch.uint8)


def tokenizer() -> Any:
    """A ``PreTrainedTokenizerFast`` whose token ``b`` is the byte ``b``; any text, back and forth, byte for byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {char: byte for byte, char in enumerate(_byte_characters())} | {"<|mask|>": MASK, "<|endoftext|>": EOS}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, mask_token="<|mask|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def _byte_characters() -> list[str]:
    """The character that byte-level tokenizers write for each byte: its own if printable, else one above 255."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
