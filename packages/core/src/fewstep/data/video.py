"""Read videos, and write frames as one that a person can look at: MP4 or GIF. Needs ``fewstep-core[video]``."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..errors import BadFileError, FewstepError

NEEDED = {".mp4": ("imageio", "av"), ".gif": ("imageio", "PIL")}
"""Packages that write each kind of file."""


def read(path: Path, *, most: int | None = None, every: int = 1) -> UInt8[Tensor, "f 3 h w"]:
    """Read the frames of a video file, or of an animated image that PyAV can decode.

    Args:
        path: MP4, AVI, WebM, GIF, ...
        most: frames to read; None reads all.
        every: keep every so many frames.

    Raises:
        FewstepError: PyAV is not installed.
        BadFileError: there is no such file, it is no video, it is damaged, or it has no frames.
    """
    try:
        import av
    except ImportError as error:
        raise FewstepError("reading videos needs av; install with: pip install 'fewstep-core[video]'") from error
    found: list[Tensor] = []
    try:
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if most is not None and len(found) == most:
                    break
                if number % every == 0:
                    found.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1))
    except (av.FFmpegError, OSError, IndexError) as error:  # IndexError: a file without a video stream
        raise BadFileError(f"{path} cannot be read as a video: {str(error) or type(error).__name__}") from error
    if not found:
        raise BadFileError(f"{path} has no frames")
    return torch.stack(found)


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


def write(frames: Float[Tensor, "f c h w"], path: Path, *, fps: float = 16.0, zoom: int = 1) -> None:
    """Write one clip; the file appears complete or not at all.

    Args:
        frames: values in [0, 1], what is outside is clipped; one channel (grey) or three.
        path: ``.mp4`` (H.264, its last row and column repeated where the size is odd) or ``.gif`` (looping).
        fps: frames a second.
        zoom: pixels of the file for each pixel of the clip, each way.

    Raises:
        FewstepError: it cannot be written, see `check_writable`.
        ValueError: the frames have another shape, or fps or zoom are not positive.
    """
    check_writable(path)
    if frames.ndim != 4 or frames.shape[1] not in (1, 3) or frames.numel() == 0 or fps <= 0 or zoom < 1:
        raise ValueError(f"a clip needs frames [f, 1 or 3, h, w], fps > 0 and zoom >= 1, found {tuple(frames.shape)}")
    import imageio.v3 as imageio

    kind = path.suffix.lower()
    pixels = _pixels(frames, zoom)
    part = path.with_name(f".{path.stem}.part{kind}")
    if kind == ".mp4":
        even = torch.nn.functional.pad(pixels, (0, pixels.shape[3] % 2, 0, pixels.shape[2] % 2), mode="replicate")
        rows = even.permute(0, 2, 3, 1).contiguous().numpy()
        imageio.imwrite(part, rows, plugin="pyav", codec="libx264", fps=fps, out_pixel_format="yuv420p")
    else:
        rows = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        imageio.imwrite(part, rows, plugin="pillow", duration=1000 / fps, loop=0)
    os.replace(part, path)


def _pixels(frames: Float[Tensor, "f c h w"], zoom: int) -> Tensor:
    """``[f, 3, zoom h, zoom w]`` in uint8."""
    bytes_ = (frames.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    large = bytes_.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    return large.expand(-1, 3, -1, -1)
