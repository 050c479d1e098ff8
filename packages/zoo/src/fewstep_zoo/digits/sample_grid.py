"""Sample grids of clips: frames side by side as one picture, or all clips moving as one animation."""

from __future__ import annotations

import io
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

GAP, GREY = 1, 128
"""Canvas pixels between frames, and their value."""
FRAME_MILLISECONDS = 160


def sample_grid(pixels: Float[Tensor, "b 1 f h w"], *, columns: int = 2, scale: int = 3) -> Any:
    """A ``PIL.Image`` with the frames of each clip from left to right, `columns` clips beside each other.

    Args:
        pixels: values from -1 to 1.
        columns: clips in a row.
        scale: pixels of the picture for each pixel of a clip, each way.
    """
    strips = rearrange(_framed(pixels), "b f h w -> b 1 h (f w)")
    page = F.pad(strips, (0, 3 * GAP), value=GREY)
    return _image(_tiled(page, columns)[0], scale)


def animation(pixels: Float[Tensor, "b 1 f h w"], *, columns: int = 8, scale: int = 4) -> bytes:
    """A looping GIF in which all clips move side by side; arguments as those of `sample_grid`."""
    first, *rest = (_image(frame, scale) for frame in _tiled(_framed(pixels), columns))
    out = io.BytesIO()
    first.save(out, "GIF", save_all=True, append_images=rest, duration=FRAME_MILLISECONDS, loop=0)
    return out.getvalue()


def png(image: Any) -> bytes:
    """The content of a PNG file of a ``PIL.Image``."""
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def _framed(pixels: Float[Tensor, "b 1 f h w"]) -> UInt8[Tensor, "b f hh ww"]:
    """Frames as bytes with a grey border."""
    frames = ((pixels[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    return F.pad(frames, (GAP, GAP, GAP, GAP), value=GREY)


def _tiled(frames: UInt8[Tensor, "b f h w"], columns: int) -> UInt8[Tensor, "f rows_h columns_w"]:
    """All clips of a batch on one canvas, row by row; the last row is filled with grey."""
    missing = -len(frames) % columns
    full = torch.cat([frames, torch.full((missing, *frames.shape[1:]), GREY, dtype=torch.uint8)])
    return rearrange(full, "(rows columns) f h w -> f (rows h) (columns w)", columns=columns)


def _image(canvas: UInt8[Tensor, "h w"], scale: int) -> Any:
    from PIL import Image

    image = Image.fromarray(canvas.contiguous().numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
