"""`Player`: frames of an endless video played in browsers of this machine as they come, at an even rate."""

from __future__ import annotations

import io
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from jaxtyping import Float
from torch import Tensor

from ..data import video
from ..errors import FewstepError
from .player_server import PageServer

WAITING = 8
"""Frames that wait for one browser; a browser that is slower than the video loses the oldest of them."""
TICK = 0.2
"""Seconds between two looks at whether the player was closed."""
LAST = 2.0
"""Seconds that browsers have, once the player closes, to take the frames that wait for them."""
QUALITY = 90
"""Of JPEG."""


class Viewer:
    """Frames on their way to one browser, a few at most."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque(maxlen=WAITING)
        self._changed, self._closed = threading.Condition(), False

    def offer(self, frame: bytes) -> None:
        """Add a frame; the oldest goes where there are too many."""
        with self._changed:
            self._frames.append(frame)
            self._changed.notify()

    def take(self) -> bytes | None:
        """Wait for the next frame; None once the player was closed and none is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._closed)
            return self._frames.popleft() if self._frames else None

    def close(self) -> None:
        """Let `take` return, after the frames that wait."""
        with self._changed:
            self._closed = True
            self._changed.notify()


class Player:
    """Context manager around a server on 127.0.0.1; whoever makes the frames waits while no browser plays them."""

    def __init__(self, on_prompt: Callable[[str], None], *, fps: float = 16.0, port: int = 0, ahead: int = 24) -> None:
        """Start the server.

        Args:
            on_prompt: takes a prompt that was typed on the page, in a thread of the server; its errors are shown there.
            fps: frames a second.
            port: of the page; 0 takes a free one.
            ahead: frames that are made before they are played, at most.

        Raises:
            FewstepError: the port is taken or not allowed.
            ValueError: fps is out of range.
        """
        video.check_rate(fps)
        self.on_prompt, self._period = on_prompt, 1 / fps
        self.state: dict[str, Any] = {}
        """What the page shows beside the video."""
        self._queue: queue.Queue[bytes] = queue.Queue(ahead)
        self._viewers: set[Viewer] = set()
        self._last: bytes | None = None
        self._watched = False
        self._changed, self._closed = threading.Condition(), False
        try:
            self._server = PageServer(port, self)
        except (OSError, OverflowError) as error:
            raise FewstepError(f"the page cannot be served on port {port}: {error}") from error
        self.address = f"http://127.0.0.1:{self._server.server_port}/"
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._server.serve_forever, self._play)]
        for thread in self._threads:
            thread.start()

    def show(self, frames: Float[Tensor, "f c h w"]) -> None:
        """Hand over frames with values in [0, 1]; waits until there is room, and does nothing once closed."""
        for pixels in video.pixels(frames, 1):
            frame = _jpeg(pixels)
            while not self._closed:
                try:
                    self._queue.put(frame, timeout=TICK)
                    break
                except queue.Full:
                    continue

    def drain(self) -> None:
        """Wait until all that was shown has been played: for a first browser too, but not for one that went."""
        with self._changed:
            while self._queue.unfinished_tasks and not self._closed and (self._viewers or not self._watched):
                self._changed.wait(TICK)  # without a limit some systems do not hear Ctrl-C

    def subscribe(self) -> Viewer:
        """A browser came: it begins with the newest frame."""
        viewer = Viewer()
        with self._changed:
            if self._last is not None:
                viewer.offer(self._last)
            if self._closed:
                viewer.close()
            self._viewers.add(viewer)
            self._watched = True
            self._changed.notify_all()
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """A browser went."""
        with self._changed:
            self._viewers.discard(viewer)
            self._changed.notify_all()

    def close(self) -> None:
        """Stop playing and serving; again it does nothing."""
        with self._changed:
            closed, self._closed = self._closed, True
            for viewer in self._viewers:
                viewer.close()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._viewers, LAST)  # their threads end with the program
        if not closed:
            self._server.shutdown()
            self._server.server_close()
            for thread in self._threads:
                thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _play(self) -> None:
        """Give each frame to all browsers when it is due."""
        due = time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._viewers or self._closed)
                if self._closed:
                    return
            try:
                frame = self._queue.get(timeout=TICK)
            except queue.Empty:
                continue
            due = max(due + self._period, time.monotonic())  # after a pause the rate is kept, nothing is caught up
            time.sleep(max(0.0, due - time.monotonic()))
            with self._changed:
                self._last = frame
                for viewer in self._viewers:
                    viewer.offer(frame)
                self._queue.task_done()
                self._changed.notify_all()


def _jpeg(pixels: Tensor) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
