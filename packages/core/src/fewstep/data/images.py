"""Pictures: read from files, and videos laid out as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BadFileError


def read_image(path: Path) -> Any:
    """An RGB ``PIL.Image``.

    Raises:
        BadFileError: the file is missing or no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise BadFileError(f"{path} is no picture that can be read: {error}") from error


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
