"""Images of a page: made smaller without loss, and clips as strips of frames that one clock can move."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

WIDEST = 16_383
"""Pixels along a side that a WebP file can have."""


@dataclass(frozen=True)
class Media:
    """An embedded image, or the frames of a clip side by side in one."""

    uri: str
    """A data URI."""
    width: int = 0
    """Pixels of one frame; 0 where they are unknown."""
    height: int = 0
    frames: int = 1
    milliseconds: int = 0
    """Time that a frame of a clip is shown."""
    pixels: bool = False
    """True for images of few colours, whose pixels are shown as squares."""


def embed(content: bytes, kind: str) -> Media:
    """The image as lossless WebP where that is smaller; as it is where Pillow is missing or does not know it."""
    plain = Media(_uri(content, kind))
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:  # comes with matplotlib; a page without it is larger, and its clips keep their own time
        return plain
    try:
        with Image.open(io.BytesIO(content)) as image:
            return _embedded(image, content, kind)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return plain


def _embedded(image: Image.Image, content: bytes, kind: str) -> Media:
    width, height = image.size
    frames, pixels = getattr(image, "n_frames", 1), image.mode in ("1", "L", "P")
    shown = int(image.info.get("duration") or 100) if frames > 1 else 0
    if frames * width > WIDEST or height > WIDEST:
        return Media(_uri(content, kind), width, height)
    packed = io.BytesIO()
    _strip(image, frames).save(packed, "WEBP", lossless=True, method=4)
    if frames == 1 and len(packed.getvalue()) >= len(content):
        return Media(_uri(content, kind), width, height, pixels=pixels)
    return Media(_uri(packed.getvalue(), "image/webp"), width, height, frames, shown, pixels)


def _strip(image: Image.Image, frames: int) -> Image.Image:
    """The frames from left to right."""
    from PIL import Image

    mode = "RGBA" if image.has_transparency_data else "RGB"
    if frames == 1:
        return image.convert(mode)
    strip = Image.new(mode, (frames * image.width, image.height))
    for number in range(frames):
        image.seek(number)
        strip.paste(image.convert(mode), (number * image.width, 0))
    return strip


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
