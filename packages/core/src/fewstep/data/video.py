"""Videos: write frames as MP4 or GIF, and compare clips. Files need ``fewstep-core[video]``."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from ..errors import FewstepError

Clip = Float[Tensor, "b c f h w"]
NEEDED = {".mp4": ("imageio", "av"), ".gif": ("imageio", "PIL")}
"""Packages that write each kind of file."""
MOST_FPS, MOST_PIXELS = 1000, 16384
"""Frames a second, and rows and columns of H.264."""
LASTS = 3.0
"""Seconds that a clip must last to be seen."""
SPAN = 2.0
"""Distance of the darkest and the brightest value of the clips that are compared, which are from -1 to 1."""
WINDOW, SIGMA = 11, 1.5
"""Pixels and standard deviation of the Gaussian window of `ssim`."""


def check_writable(path: Path) -> None:
    """Find out before the work whether a video can be written to `path`.

    Raises:
        FewstepError: another ending than .mp4 and .gif, a package is missing, or there is no such folder.
    """
    kind = path.suffix.lower()
    if kind not in NEEDED:
        raise FewstepError(f"{path}: videos are written as {' or '.join(NEEDED)}")
    if missing := [name for name in NEEDED[kind] if importlib.util.find_spec(name) is None]:
        raise FewstepError(
            f"writing {kind} files needs {' and '.join(missing)}; install with: pip install 'fewstep-core[video]'"
        )
    if not path.parent.is_dir():
        raise FewstepError(f"{path} cannot be written: there is no folder {path.parent}")


def check_rate(fps: float) -> None:
    """Refuse frames a second that no file holds.

    Raises:
        ValueError: they are not above 0 and at most `MOST_FPS`.
    """
    if not 0 < fps <= MOST_FPS:
        raise ValueError(f"fps must be above 0 and at most {MOST_FPS}, found {fps}")


def looped(frames: Float[Tensor, "f c h w"], fps: float) -> Float[Tensor, "n c h w"]:
    """The clip, repeated whole until it lasts `LASTS` seconds: players stop after the last frame."""
    times = max(1, math.ceil(LASTS * fps / len(frames)))
    return frames.repeat(times, 1, 1, 1)


def write(frames: Float[Tensor, "f c h w"], path: Path, *, fps: float = 16.0, zoom: int = 1) -> None:
    """Write one clip; the file appears complete or not at all.

    Args:
        frames: values in [0, 1], what is outside is clipped; one channel (grey) or three.
        path: ``.mp4`` (H.264, its last row and column repeated where the size is odd) or ``.gif`` (looping).
        fps: frames a second.
        zoom: pixels of the file for each pixel of the clip, each way.

    Raises:
        FewstepError: it cannot be written, see `check_writable`.
        ValueError: the frames have another shape, or fps or zoom are out of range.
    """
    check_writable(path)
    check_rate(fps)
    if frames.ndim != 4 or frames.shape[1] not in (1, 3) or frames.numel() == 0:
        raise ValueError(f"a clip needs frames [f, 1 or 3, h, w], found {tuple(frames.shape)}")
    import imageio.v3 as imageio

    kind = path.suffix.lower()
    part = path.with_name(f".{path.stem}.part{kind}")
    if kind == ".mp4":
        rows = even_pixels(frames, zoom).numpy()
        imageio.imwrite(part.absolute(), rows, plugin="pyav", codec="libx264", fps=fps, out_pixel_format="yuv420p")
    else:
        rows = pixels(frames, zoom).permute(0, 2, 3, 1).contiguous().numpy()
        imageio.imwrite(part.absolute(), rows, plugin="pillow", duration=1000 / fps, loop=0)
    os.replace(part, path)


def even_pixels(frames: Float[Tensor, "f c h w"], zoom: int) -> UInt8[Tensor, "f H W 3"]:
    """Pixels as H.264 takes them: rows and columns are even in number, the last one repeated where they were not."""
    large = pixels(frames, zoom)
    even = F.pad(large, (0, large.shape[3] % 2, 0, large.shape[2] % 2), mode="replicate")
    return even.permute(0, 2, 3, 1).contiguous()


def pixels(frames: Float[Tensor, "f c h w"], zoom: int) -> UInt8[Tensor, "f 3 H W"]:
    """Bytes of frames with values in [0, 1], each pixel `zoom` times in each direction.

    Raises:
        ValueError: zoom is below 1, or gives more rows or columns than files hold.
    """
    if zoom < 1 or zoom * max(frames.shape[2:]) > MOST_PIXELS:
        raise ValueError(f"zoom={zoom} must be at least 1 and give at most {MOST_PIXELS} rows and columns")
    bytes_ = (frames.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    large = bytes_.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    return large.expand(-1, 3, -1, -1)


def psnr(clip: Float[Tensor, "*n"], target: Float[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Peak signal-to-noise ratio in dB, ``20 log10(2 / rms)``, at most 100; without a gradient."""
    error = (clip.detach().double() - target.detach().double()).square().mean()
    return 20 * math.log10(SPAN) - 10 * error.clamp(min=SPAN**2 * 1e-10).log10()


def sharpness(clip: Clip, target: Clip) -> float:
    """Energy of the Laplacian of `clip` as a share of that of `target`: below 1 is softer, above 1 is noisier."""
    kernel = clip.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    energy, wanted = (F.conv2d(_planes(one), kernel).square().mean() for one in (clip, target))
    return float(energy / wanted.clamp(min=1e-12))


def ssim(clip: Clip, target: Clip) -> Float[Tensor, ""]:
    """Mean structural similarity of frames, differentiable (Wang et al. 2004, "Image quality assessment").

    A Gaussian window of 11 pixels, no padding; frames with fewer than 11 rows or columns get more by repetition of the
    last one.
    """
    x, y = (_planes(one) for one in (clip, target))
    down, right = (max(0, WINDOW - size) for size in x.shape[2:])
    if down or right:
        x, y = (F.pad(one, (0, right, 0, down), mode="replicate") for one in (x, y))
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x * mean_x, _blurred(y * y) - mean_y * mean_y
    covariance = _blurred(x * y) - mean_x * mean_y
    # equation 13: (2 mx my + C1) (2 sxy + C2) / ((mx^2 + my^2 + C1) (sx^2 + sy^2 + C2)), Ci = (Ki L)^2
    c1, c2 = (0.01 * SPAN) ** 2, (0.03 * SPAN) ** 2
    similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (similar / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean()


def _planes(clip: Clip) -> Float[Tensor, "n 1 h w"]:
    """Each channel of each frame as an image."""
    return clip.transpose(1, 2).flatten(0, 2)[:, None]


def _blurred(images: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 H W"]:
    at = torch.arange(WINDOW, dtype=torch.float64, device=images.device) - WINDOW // 2
    weight = torch.softmax(-(at**2) / (2 * SIGMA**2), 0).to(images.dtype)
    return F.conv2d(F.conv2d(images, weight.view(1, 1, 1, -1)), weight.view(1, 1, -1, 1))
