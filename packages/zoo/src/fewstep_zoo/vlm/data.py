"""Questions with their answers, as `fewstep.train` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from . import canvas, model
from .canvas import GRID, Asked, Split
from .words import FORMS, vocabulary

IGNORED = -100
"""Label of positions that are not scored."""


class Conversation(NamedTuple):
    """A batch of canvases with one or more questions and their answers, padded at the right."""

    ids: Int[Tensor, "b s"]
    types: Int[Tensor, "b s"]
    """1 at the tokens of the picture, as the processor's ``mm_token_type_ids``."""
    labels: Int[Tensor, "b s"]
    """At each position the token that follows it where that belongs to an answer, elsewhere -100."""
    pixels: Float[Tensor, "patches features"]
    positions: Int[Tensor, "3 b s"]

    def inputs(self) -> dict[str, Tensor]:
        """Return the keyword arguments of the model."""
        side = 2 * GRID
        return {
            "input_ids": self.ids,
            "mm_token_type_ids": self.types,
            "pixel_values": self.pixels,
            "image_grid_thw": torch.tensor([[1, side, side]]).expand(len(self.ids), -1),
            "position_ids": self.positions,
        }

    def scored(self) -> Bool[Tensor, "b s"]:
        """Return True at the positions that predict a token of an answer."""
        return self.labels != IGNORED


@dataclass(eq=False, kw_only=True)
class Questions:
    """Canvases of a split, each with several questions in turn: the data of the recipe."""

    split: Split = "train"
    turns: int = 3
    """Questions about each canvas: the picture costs more than a question."""
    kinds: tuple[str, ...] = tuple(FORMS)
    """Kinds of questions that are asked."""
    shape: tuple[int, ...] = (GRID * canvas.SIDE, GRID * canvas.SIDE)
    uncond: None = None

    def draw(self, size: int, generator: torch.Generator) -> tuple[Conversation, None]:
        """Draw conversations about `size` canvases."""
        drawn = canvas.draw(size, self.split, generator, self.kinds)
        kinds, asked = self.kinds, [[first] for first in drawn.asked]
        for row, digits in zip(asked, drawn.digits.tolist(), strict=True):
            for _ in range(self.turns - 1):
                order = torch.randperm(GRID * GRID, generator=generator).tolist()
                kind, pick = torch.randint(1000, (2,), generator=generator).tolist()
                row.append(canvas.ask(kinds[kind % len(kinds)], digits, order, pick))
        return conversation(asked, drawn.pixels), None


def conversation(asked: Sequence[Sequence[Asked]], pixels: Tensor) -> Conversation:
    """Make tokens and labels of canvases ``[B, 32, 32]`` and the questions about each."""
    ids = vocabulary()
    picture = [ids["<|vision_start|>"], *[ids["<|image_pad|>"]] * GRID**2, ids["<|vision_end|>"]]
    rows: list[tuple[list[int], list[int]]] = []
    for turns in asked:
        tokens, labels = list(picture), [IGNORED] * len(picture)
        for one in turns:
            question = [ids[word] for word in one.question.split()]
            answer = [*(ids[word] for word in one.answer.split()), ids["<|im_end|>"]]
            tokens += question + answer
            labels += [*[IGNORED] * (len(question) - 1), *answer, IGNORED]
        rows.append((tokens, labels))
    longest = max(len(tokens) for tokens, _ in rows)
    padded = torch.tensor([tokens + [ids["<|endoftext|>"]] * (longest - len(tokens)) for tokens, _ in rows])
    labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in rows])
    types = (padded == ids["<|image_pad|>"]).long()
    return Conversation(padded, types, labels, model.patches(pixels), model.positions(types))
