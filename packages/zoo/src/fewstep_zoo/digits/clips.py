"""Clips of moving digits: scikit-learn's real handwritten digits, drawn with sub-pixel motion."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .words import DIGITS, DIRECTIONS, Label

CANVAS, FRAMES, SIDE = 16, 6, 8
SHAPE = (1, FRAMES, CANVAS, CANVAS)
"""Shape of one clip: channels, frames, rows, columns."""
PIXELS_PER_FRAME = (0.3, 1.0)
"""By speed: slow and fast."""
FAST = 0.3
"""Fraction of fast clips."""
KEPT = 3
"""Frame steps in which a clip certainly moves as its prompt says, before it may bounce off an edge."""
JITTER = 1.0
"""Pixels by which the middle of a path may be off the middle of the canvas, down and right."""
Split = Literal["train", "held-out"]


@dataclass(frozen=True)
class Clips:
    """A batch of clips and their labels."""

    pixels: Float[Tensor, "b 1 f h w"]
    """From -1 (background) to 1 (ink)."""
    digit: Int[Tensor, " b"]
    direction: Int[Tensor, " b"]
    speed: Int[Tensor, " b"]

    def labels(self) -> list[Label]:
        """The label of each clip; its prompt asks for that clip."""
        rows = torch.stack([self.digit, self.direction, self.speed], 1).tolist()
        return [Label(*row) for row in rows]


@functools.cache
def images(split: Split) -> tuple[Float[Tensor, "n 8 8"], Int[Tensor, " digits"]]:
    """Images from 0 to 1, sorted by digit, and how many there are of each: every fifth of the 1797 is held out."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    held_out = torch.arange(len(data.target)) % 5 == 0
    keep = held_out if split == "held-out" else ~held_out
    digit = torch.as_tensor(data.target).long()[keep]
    order = digit.argsort(stable=True)
    return torch.as_tensor(data.images).float()[keep][order] / 16, digit.bincount(minlength=len(DIGITS))


def draw_labels(count: int, generator: torch.Generator) -> list[Label]:
    """Draw labels of `count` clips: digits and directions alike often, `FAST` of them fast."""
    digit = torch.randint(len(DIGITS), (count,), generator=generator)
    direction = torch.randint(len(DIRECTIONS), (count,), generator=generator)
    speed = torch.rand(count, generator=generator) < FAST
    return [Label(*row) for row in torch.stack([digit, direction, speed.long()], 1).tolist()]


def make(labels: Sequence[Label], split: Split, generator: torch.Generator) -> Clips:
    """Draw clips of these labels (nothing open), each of an image and a start that `generator` chooses.

    Raises:
        ValueError: a label leaves something open.
    """
    if any(None in (label.digit, label.direction, label.speed) for label in labels):
        raise ValueError("a clip needs a digit, a direction and a speed")
    digit, direction, speed = torch.tensor([[label.digit, label.direction, label.speed] for label in labels]).T
    every, count = images(split)
    first = count.cumsum(0) - count
    chosen = first[digit] + (torch.rand(len(digit), generator=generator) * count[digit]).long()
    moved = velocity(direction, speed)
    pixels = render(every[chosen], positions(_start(moved, generator), moved))
    return Clips(pixels, digit, direction, speed)


def velocity(direction: Int[Tensor, " b"], speed: Int[Tensor, " b"]) -> Float[Tensor, "b 2"]:
    """Pixels per frame, down and right."""
    angle = direction * (torch.pi / 4)
    length = torch.tensor(PIXELS_PER_FRAME)[speed]
    return length[:, None] * torch.stack([angle.sin(), angle.cos()], 1)


def _start(moved: Float[Tensor, "b 2"], generator: torch.Generator) -> Float[Tensor, "b 2"]:
    """Start of a path whose middle is within `JITTER` of that of the canvas, and that meets no edge too early."""
    room = CANVAS - SIDE
    middle = room / 2 - moved * (FRAMES - 1) / 2
    low = torch.maximum(middle - JITTER, (-KEPT * moved).clamp(min=0))
    high = torch.minimum(middle + JITTER, room - (KEPT * moved).clamp(min=0))
    return low + (high - low) * torch.rand(moved.shape, generator=generator)


def positions(start: Float[Tensor, "b 2"], moved: Float[Tensor, "b 2"]) -> Float[Tensor, "b f 2"]:
    """Top left corners in each frame at constant speed, reflected where the image would leave the canvas."""
    room = CANVAS - SIDE
    free = start[:, None] + moved[:, None] * torch.arange(FRAMES)[:, None]
    return room - ((free % (2 * room)) - room).abs()


def render(image: Float[Tensor, "b 8 8"], corner: Float[Tensor, "b f 2"]) -> Float[Tensor, "b 1 f h w"]:
    """Draw each image at its corners with bilinear weights; the background is -1."""
    at = corner[..., None] + torch.arange(SIDE)
    weight = (1 - (torch.arange(CANVAS)[:, None] - at[..., None, :]).abs()).clamp(min=0)
    ink = weight[:, :, 0] @ image[:, None] @ weight[:, :, 1].mT
    return 2 * ink[:, None] - 1
