"""Canvases: real 8x8 digits in some cells of a grid of four by four, and questions with their true answers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from .words import CELLS, COLUMNS, FORMS, LANGUAGES, NUMBERS, ROWS

SIDE, GRID = 8, 4
NOISE = 0.05
"""Standard deviation of the noise on pixels from 0 to 1."""
FEWEST, MOST = 2, 10
"""Digits on a canvas."""
EMPTY = -1
Split = Literal["train", "calibration", "test"]


@dataclass(frozen=True)
class Asked:
    """One question about one canvas."""

    kind: str
    """A key of `fewstep_zoo.vlm.words.FORMS`."""
    question: str
    answer: str
    """Words, without the end token."""


@dataclass(frozen=True)
class Canvases:
    """A batch of canvases, each with one question."""

    pixels: UInt8[Tensor, "b h w"]
    """Ink is bright."""
    digits: Int[Tensor, "b cells"]
    """Row by row; -1 where a cell is empty."""
    asked: list[Asked]


@functools.cache
def images(split: Split) -> tuple[Float[Tensor, "n 8 8"], Int[Tensor, " n"]]:
    """Read images in [0, 1] and their labels: of scikit-learn's 1797, a tenth each is for calibration and for test."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    number = torch.arange(len(data.target)) % 10
    keep = {"train": (number != 4) & (number != 9), "calibration": number == 4, "test": number == 9}[split]
    return torch.as_tensor(data.images).float()[keep] / 16, torch.as_tensor(data.target).long()[keep]


def draw(size: int, split: Split, generator: torch.Generator, kinds: Sequence[str] = tuple(FORMS)) -> Canvases:
    """Draw canvases with 2 to 10 digits and one question each; the kinds of questions take turns."""
    every, labels = images(split)
    many = torch.randint(FEWEST, MOST + 1, (size, 1), generator=generator)
    filled = torch.rand(size, GRID * GRID, generator=generator).argsort(1).argsort(1) < many
    chosen = torch.randint(len(labels), (size, GRID * GRID), generator=generator)
    digits = labels[chosen].where(filled, torch.tensor(EMPTY))
    cells = every[chosen] * filled[..., None, None]
    page = rearrange(cells, "b (row column) h w -> b (row h) (column w)", row=GRID)
    noisy = page + NOISE * torch.randn(page.shape, generator=generator)
    shuffled = torch.rand(digits.shape, generator=generator)
    asked = [
        ask(kinds[i % len(kinds)], row.tolist(), order.argsort().tolist(), int(pick * 1000))
        for i, (row, order, pick) in enumerate(
            zip(digits, shuffled, torch.rand(size, generator=generator).tolist(), strict=True)
        )
    ]
    return Canvases((noisy.clamp(0, 1) * 255).round().to(torch.uint8), digits, asked)


def ask(kind: str, digits: Sequence[int], order: Sequence[int], pick: int) -> Asked:
    """Make a question of `kind` about the filled cells that come first in `order`; `pick` chooses a language.

    A canvas without a digit that occurs once is asked for its number of digits instead of where one is.
    """
    there = [cell for cell in order if digits[cell] != EMPTY]
    first, second = there[:2]
    once = [cell for cell in there if list(digits).count(digits[cell]) == 1]
    if kind == "find" and not once:
        kind = "count"
    language = list(LANGUAGES)[pick % len(LANGUAGES)]
    row = first // GRID
    said = FORMS[kind].format(
        cell=CELLS[first],
        other=CELLS[second],
        language=language,
        row=ROWS[row],
        digit=NUMBERS[digits[once[0]]] if once else "",
    )
    answers = {
        "name": lambda: LANGUAGES[language][digits[first]],
        "find": lambda: CELLS[once[0]],
        "count": lambda: NUMBERS[len(there)],
        "larger": lambda: NUMBERS[max(digits[first], digits[second])],
        "sum": lambda: NUMBERS[digits[first] + digits[second]],
        "read": lambda: " ".join(
            NUMBERS[d] for d in digits[row * len(COLUMNS) : (row + 1) * len(COLUMNS)] if d != EMPTY
        ),
    }
    return Asked(kind, said, answers[kind]())
