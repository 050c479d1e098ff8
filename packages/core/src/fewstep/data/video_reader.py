"""The reader of video files: upright frames at even distances in time. Needs ``fewstep-core[video]``."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from ..errors import BadFileError, FewstepError

CONTAINERS = (
    "mov,matroska,avi,gif,apng,mpegts,mpeg,mpegvideo,m4v,h264,hevc,vvc,obu,ivf,ogg,flv,asf,mjpeg,yuv4mpegpipe,nut,mxf,dv,"
    "rm,png_pipe,jpeg_pipe,webp_pipe"
)
"""Kinds of files, by FFmpeg's names. It would also draw text as a video, and open the addresses that playlists name."""
ONE = 1 << 16
"""1 in the fixed-point numbers of a display matrix."""


def read_video(path: Path, *, most: int | None = None, every: int = 1) -> UInt8[Tensor, "f 3 h w"]:
    """Read the frames of a video file, or of an animated image that PyAV can decode.

    Frames are turned and mirrored as the file says that players show them. Where they stand at uneven times, as in
    videos of phones and screens, they are read at the file's mean rate: at each moment the frame that a player shows.

    Args:
        path: of an MP4, AVI, WebM, GIF, ... file.
        most: frames to read; None reads all.
        every: keep every so many frames.

    Raises:
        FewstepError: PyAV is not installed.
        BadFileError: there is no such file, it is no video, it is damaged, has no frames, changes its size, or is shown
            at an angle that is no multiple of 90 degrees.
    """
    try:
        import av
    except ImportError as error:
        raise FewstepError("reading videos needs av; install with: pip install 'fewstep-core[video]'") from error
    try:
        shown = None if most == 1 else _moments(path)
        with _open(path) as container:
            decoded = container.decode(video=0)
            even = decoded if shown is None else _at(shown, decoded)
            frames = _pixels(islice(even, 0, None if most is None else most * every, every), path)
    except (av.FFmpegError, OSError, IndexError) as error:  # IndexError: a file without a video stream
        raise BadFileError(
            f"{path} cannot be read as a video ({str(error) or type(error).__name__}); MP4, AVI, WebM, GIF "
            "and the like are read"
        ) from error
    if not frames:
        raise BadFileError(f"{path} has no frames")
    return torch.stack(frames)


def _open(path: Path) -> Any:
    """The container; an absolute path, because FFmpeg takes what stands before a colon for a protocol."""
    import av

    return av.open(str(path.absolute()), options={"format_whitelist": CONTAINERS})


def _moments(path: Path) -> list[Fraction] | None:
    """Even moments, as many as there are frames, half a frame after each; None where the file tells no times.

    At the moment ``t_0 + (k + 1/2) d``, with ``d`` the mean distance of frames, frame ``k`` of an even video is shown,
    however its times are rounded.
    """
    with _open(path) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.size and not packet.is_discard]
    if None in times or len(set(times)) < 2:
        return None
    first, distance = min(times), Fraction(max(times) - min(times), len(times) - 1)
    return [first + (number + Fraction(1, 2)) * distance for number in range(len(times))]


def _at(moments: list[Fraction], frames: Iterable[Any]) -> Iterator[Any]:
    """The frame that is shown at each moment: the last one whose time has come."""
    remaining, shown = iter(moments), None
    moment = next(remaining, None)
    for frame in frames:
        while moment is not None and shown is not None and frame.pts is not None and frame.pts > moment:
            yield shown
            moment = next(remaining, None)
        shown = frame
    while moment is not None and shown is not None:
        yield shown
        moment = next(remaining, None)


def _pixels(frames: Iterable[Any], path: Path) -> list[UInt8[Tensor, "3 h w"]]:
    """Upright pixels of decoded frames, which must have one size."""
    pixels: list[Tensor] = []
    for number, frame in enumerate(frames):
        pixels.append(_upright(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1), frame, path))
        if pixels[-1].shape != pixels[0].shape:
            (_, rows, columns), (_, new_rows, new_columns) = pixels[0].shape, pixels[-1].shape
            raise BadFileError(
                f"{path} changes its size from {columns}x{rows} to {new_columns}x{new_rows} at frame {number}: one "
                "size is needed; cut the video there, or encode it again"
            )
    return pixels


def _upright(pixels: UInt8[Tensor, "3 h w"], frame: Any, path: Path) -> UInt8[Tensor, "3 H W"]:
    """Turn and mirror pixels by the display matrix of their frame: ``(x, y)`` is shown at ``(a x + c y, b x + d y)``.

    Raises:
        BadFileError: the matrix turns by another angle than a multiple of 90 degrees.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return pixels
    a, b, _, c, d, *_ = struct.unpack("9i", bytes(data))
    if any((b, c)) == any((a, d)) or {abs(a or b), abs(d or c)} != {ONE}:
        raise BadFileError(
            f"{path} is shown at an angle or scaled by its display matrix; only turns by 90, 180 and 270 degrees and "
            "mirrors are read"
        )
    turned = pixels.transpose(1, 2) if b else pixels
    mirrored = [dim for dim, sign in ((2, a or c), (1, d or b)) if sign < 0]
    return turned.flip(mirrored).contiguous()
