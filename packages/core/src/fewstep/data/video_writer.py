"""`VideoWriter`: an MP4 file whose frames are written as they come, so that its length costs no memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Self

from jaxtyping import Float
from torch import Tensor

from ..errors import FewstepError
from . import video


class VideoWriter:
    """Context manager; the file appears whole when it is left, also by Ctrl-C, and not at all after an error."""

    def __init__(self, path: Path, *, fps: float = 16.0, zoom: int = 1) -> None:
        """Find out whether the file can be written; it is opened with the first frames.

        Args:
            path: an ``.mp4`` (H.264, the last row and column repeated where the size is odd).
            fps: frames a second.
            zoom: pixels of the file for each pixel of the frames, each way.

        Raises:
            FewstepError: another ending, a package or the folder is missing.
            ValueError: fps is out of range.
        """
        video.check_writable(path)
        video.check_rate(fps)
        if path.suffix.lower() != ".mp4":
            raise FewstepError(f"{path}: frames that come one after the other are written as .mp4")
        self.path, self.fps, self.zoom, self.frames = path, fps, zoom, 0
        self._part = path.with_name(f".{path.stem}.part.mp4")
        self._file: Any = None

    def add(self, frames: Float[Tensor, "f c h w"]) -> None:
        """Write frames with values in [0, 1], of one channel or three.

        Raises:
            ValueError: zoomed they are larger than the format holds.
        """
        pixels = video.even_pixels(frames, self.zoom)
        if self._file is None:
            import imageio.v3 as imageio

            self._file = imageio.imopen(self._part.absolute(), "w", plugin="pyav")
            self._file.init_video_stream("libx264", fps=self.fps, pixel_format="yuv420p")
        for rows in pixels:
            self._file.write_frame(rows.numpy())
        self.frames += len(pixels)

    def close(self) -> None:
        """Finish the file and put it in place; without frames there is none. Again it does nothing."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.close()
            os.replace(self._part, self.path)
        except BaseException:  # the disk is full, for example
            self._abandon(file)
            raise

    def discard(self) -> None:
        """Leave no file."""
        file, self._file = self._file, None
        if file is not None:
            self._abandon(file)

    def _abandon(self, file: Any) -> None:
        """Remove a file that is not finished; what goes wrong here would hide what went wrong first."""
        try:
            with contextlib.suppress(Exception):
                file._video_stream = None  # or frames that wait are encoded, here and again when imageio lets go of it
                file.close()
        finally:
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.close()
        else:
            self.discard()
