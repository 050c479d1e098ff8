"""Clips as pictures that a person can look at: frames side by side, or moving."""

from __future__ import annotations

import io
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

GAP = 1
"""Canvas pixels of grey between frames."""
FRAME_MILLISECONDS = 160


def contact_sheet(pixels: Float[Tensor, "b 1 f h w"], *, columns: int = 2, scale: int = 3) -> Any:
    """A `PIL.Image`: each clip is a strip of its frames from left to right, `columns` strips beside each other."""
    frames = _framed(_grey(pixels))
    count, number, height, width = frames.shape
    strips = frames.transpose(1, 2).reshape(count, 1, height, number * width)
    return _image(_tiled(torch.nn.functional.pad(strips, (0, 3 * GAP), value=128), columns)[0], scale)


def animation(pixels: Float[Tensor, "b 1 f h w"], *, columns: int = 8, scale: int = 4) -> bytes:
    """A looping GIF in which all clips move side by side."""
    first, *rest = (_image(frame, scale) for frame in _tiled(_framed(_grey(pixels)), columns))
    out = io.BytesIO()
    first.save(out, "GIF", save_all=True, append_images=rest, duration=FRAME_MILLISECONDS, loop=0)
    return out.getvalue()


def png(image: Any) -> bytes:
    """A `PIL.Image` as the content of a PNG file."""
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def _grey(pixels: Float[Tensor, "b 1 f h w"]) -> UInt8[Tensor, "b f h w"]:
    return ((pixels[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().cpu()


def _framed(frames: UInt8[Tensor, "b f h w"]) -> UInt8[Tensor, "b f hh ww"]:
    return torch.nn.functional.pad(frames, (GAP, GAP, GAP, GAP), value=128)


def _tiled(frames: UInt8[Tensor, "b f h w"], columns: int) -> UInt8[Tensor, "f rows_h columns_w"]:
    """All clips of a batch on one canvas, row by row; the last row is filled with grey."""
    count, number, height, width = frames.shape
    rows = -(-count // columns)
    whole = torch.full((rows * columns, number, height, width), 128, dtype=torch.uint8)
    whole[:count] = frames
    grid = whole.view(rows, columns, number, height, width).permute(2, 0, 3, 1, 4)
    return grid.reshape(number, rows * height, columns * width)


def _image(canvas: UInt8[Tensor, "h w"], scale: int) -> Any:
    from PIL import Image

    image = Image.fromarray(canvas.numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
