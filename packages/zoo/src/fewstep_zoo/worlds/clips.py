"""Clips of panning worlds: everything that comes into view is decided by the first frame and the motion."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .words import COLOURS, DIGITS, DIRECTIONS, SPEEDS, Scene

Split = Literal["train", "tuning", "held-out"]
"""Worlds to train on, to choose settings on, and to measure on: other digits, other textures."""
SIDE, FRAMES, RATE = 64, 81, 16
"""Pixels each way, frames of a clip, frames a second."""
VERSION = 1
"""Rises whenever the same seed gives other clips: latents in the cache are of one version."""
SPRITE = 16
"""Pixels of a digit, each way."""
PIXELS_PER_FRAME = (0.5, 1.0)
"""Motion of the window by speed: at the higher one, what leaves the picture comes back within a clip."""
SPRITE_SPEED = 0.75
"""Pixels that a digit moves each frame, along both axes."""
_RGB = torch.tensor([[1.0, 0.15, 0.15], [0.1, 0.85, 0.2], [0.2, 0.35, 1.0], [1.0, 0.9, 0.1], [1.0, 1.0, 1.0]])
WAYS = ((0, 1), (1, 0), (0, -1), (-1, 0))
"""Rows and columns that the window moves by direction."""


@dataclass(frozen=True)
class Clips:
    """Clips with what is in them."""

    pixels: Float[Tensor, "b 3 f h w"]
    """Values from -1 to 1."""
    scenes: list[Scene]
    """Motion at the beginning, and digits; where a clip turns, `turned` is the motion after it."""
    turned: list[Scene]
    """Motion at the end."""


def draw_scenes(count: int, generator: torch.Generator) -> list[Scene]:
    """Draw scenes in which all directions, speeds, colours and digits are alike often; half have two digits."""
    numbers = torch.rand(count, 7, generator=generator)
    sizes = torch.tensor([len(DIRECTIONS), len(SPEEDS), 2, len(COLOURS), len(DIGITS), len(COLOURS), len(DIGITS)])
    rows = (numbers * sizes).long().tolist()
    return [Scene(way, speed, ((a, b), (c, d))[: 1 + two]) for way, speed, two, a, b, c, d in rows]


def make(
    scenes: Sequence[Scene],
    split: Split,
    generator: torch.Generator,
    *,
    frames: int = FRAMES,
    turns: Int[Tensor, " b"] | None = None,
) -> Clips:
    """Render worlds of these scenes (nothing open), each with a texture, a start and images that `generator` chooses.

    Args:
        scenes: one for each clip.
        split: of the images of digits; textures are new each time.
        generator: of all chance.
        frames: of a clip.
        turns: frame of each clip at which the window moves another way, a random one; none by default.
    """
    count = len(scenes)
    way, speed = torch.tensor([[scene.direction, scene.speed] for scene in scenes]).unbind(1)
    other = (way + torch.randint(1, len(DIRECTIONS), (count,), generator=generator)) % len(DIRECTIONS)
    turn = torch.full((count,), frames) if turns is None else turns
    corner = _path(way, other, speed, turn, frames)
    ground = _window(_textures(count, generator), corner)
    for slot in range(2):
        chosen = [scene.sprites[slot] if scene.sprites and len(scene.sprites) > slot else None for scene in scenes]
        ground = _with_sprite(ground, chosen, split, generator)
    turned = [
        Scene(int(b), scene.speed, scene.sprites) if at < frames else scene
        for scene, b, at in zip(scenes, other, turn, strict=True)
    ]
    return Clips(2 * ground.transpose(1, 2) - 1, list(scenes), turned)


def _path(way: Tensor, other: Tensor, speed: Tensor, turn: Tensor, frames: int) -> Tensor:
    """Top left corner of the window in each frame ``[b, f, 2]``, in pixels; the first frame shows all there is."""
    step, ways = torch.tensor(PIXELS_PER_FRAME)[speed][:, None, None], torch.tensor(WAYS)
    time = torch.arange(frames)[None, :, None]
    before, after = time.minimum(turn[:, None, None]), (time - turn[:, None, None]).clamp(min=0)
    return step * (before * ways[way][:, None] + after * ways[other][:, None])


def _textures(count: int, generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Smooth random colours from 0.1 to 0.9, of three scales."""
    total = torch.zeros(count, 3, SIDE, SIDE)
    for cells, strength in ((3, 1.0), (6, 0.5), (12, 0.1)):
        grey = torch.randn(count, 1, cells, cells, generator=generator)
        colour = torch.randn(count, 3, cells, cells, generator=generator)
        total += strength * F.interpolate(0.7 * grey + colour, size=(SIDE, SIDE), mode="bicubic")
    return 0.1 + 0.8 * total.sigmoid()


def _window(texture: Float[Tensor, "b 3 h w"], corner: Float[Tensor, "b f 2"]) -> Float[Tensor, "b f 3 h w"]:
    """Pixels under the window; beyond its edges the texture is mirrored, so the first frame knows all of it.

    Between two whole pixels it is their mean: the window moves along one axis, in halves of a pixel.
    """
    whole = corner.floor()
    half = (corner > whole).any(-1)[..., None, None, None]
    first, second = (_whole_window(texture, at.long()) for at in (whole, corner.ceil()))
    return torch.where(half, (first + second) / 2, first)


def _whole_window(texture: Float[Tensor, "b 3 h w"], corner: Int[Tensor, "b f 2"]) -> Float[Tensor, "b f 3 h w"]:
    at = (corner[..., None] + torch.arange(SIDE)) % (2 * SIDE)
    at = torch.where(at < SIDE, at, 2 * SIDE - 1 - at)
    rows, columns = at[:, :, 0, :, None], at[:, :, 1, None, :]
    batch = torch.arange(len(texture))[:, None, None, None]
    return texture.movedim(1, -1)[batch, rows, columns].movedim(-1, 2)


def _with_sprite(ground: Tensor, chosen: Sequence[Any], split: Split, generator: torch.Generator) -> Tensor:
    """The frames with one more digit in front of each that has one; it moves straight and bounces off the edges."""
    count, frames = ground.shape[:2]
    room = SIDE - SPRITE
    start = torch.rand(count, 1, 2, generator=generator) * 2 * room
    free = (start + SPRITE_SPEED * torch.arange(frames)[None, :, None]) % (2 * room)
    corner = room - (free - room).abs()
    ink, luck = images(split), torch.rand(count, generator=generator)
    cover = torch.zeros(count, 1, SPRITE, SPRITE)
    colour = torch.zeros(count, 3)
    for clip, sprite in enumerate(chosen):
        if sprite is not None:
            of_digit = ink[sprite[1]]
            cover[clip, 0] = of_digit[int(luck[clip] * len(of_digit))]
            colour[clip] = _RGB[sprite[0]]
    weight = _placed(cover, corner)
    return ground * (1 - weight) + weight * colour[:, None, :, None, None]


def _placed(cover: Float[Tensor, "b 1 s s"], corner: Float[Tensor, "b f 2"]) -> Float[Tensor, "b f 1 h w"]:
    """Images at their corners with bilinear weights."""
    at = corner[..., None] + torch.arange(SPRITE)
    weight = (1 - (torch.arange(SIDE)[:, None] - at[..., None, :]).abs()).clamp(min=0)
    return (weight[:, :, 0] @ cover @ weight[:, :, 1].mT)[:, :, None]


@functools.cache
def images(split: Split) -> list[Float[Tensor, "n 16 16"]]:
    """Handwritten images by digit, from 0 to 1; of each ten, one is for tuning and two are held out."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    tenth = torch.arange(len(data.target)) % 10
    keep = {"train": tenth > 2, "tuning": tenth == 2, "held-out": tenth < 2}[split]
    small = torch.as_tensor(data.images).float()[:, None] / 16
    large = F.interpolate(small, size=(SPRITE, SPRITE), mode="bilinear")[:, 0].clamp(0, 1)
    large = (1.6 * large).clamp(max=1)
    digit = torch.as_tensor(data.target)
    return [large[keep & (digit == value)] for value in range(len(DIGITS))]
