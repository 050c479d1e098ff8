"""Pictures: read from files, and videos laid out as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadFileError

BACKGROUND = (255, 255, 255)
"""Colour behind transparent pixels."""


def read_image(path: Path) -> Any:
    """Read a picture as an RGB ``PIL.Image``: upright by its EXIF orientation, transparency on white, first frame.

    Pictures of 16 bits a channel are scaled to 8; palettes, greys and CMYK are converted.

    Raises:
        BadFileError: the file is missing or no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            return _rgb(ImageOps.exif_transpose(opened))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise BadFileError(f"{path} is no picture that can be read: {error}") from error


def _rgb(image: Any) -> Any:
    import numpy
    from PIL import Image

    if image.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel; PIL would clip them to 255
        scale = 255.0 if image.mode == "F" else 255 / 65535
        values = numpy.asarray(image, dtype="float64") * scale
        return Image.fromarray(values.round().clip(0, 255).astype("uint8")).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, (*BACKGROUND, 255))
        return Image.alpha_composite(page, layer).convert("RGB")
    return image.convert("RGB")


def sample_grid(videos: Float[Tensor, "b f 3 h w"], *, scale: int = 1) -> Any:
    """A ``PIL.Image`` with one video a row, its frames side by side, each pixel `scale` pixels wide.

    Args:
        videos: values in [0, 1].
        scale: enlargement, 1 or more.
    """
    from einops import rearrange
    from PIL import Image

    pixels = (videos * 255).round().to(torch.uint8).cpu()
    page = rearrange(pixels, "b f c h w -> (b h) (f w) c").contiguous()
    image = Image.fromarray(page.numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
