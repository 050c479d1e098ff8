"""The server behind a player: its page, the frames as motion JPEG, what the page shows, and prompts from it."""

from __future__ import annotations

import json
import os
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, Protocol, cast

LONGEST = 16_384
"""Bytes of a request's body."""
PATIENCE = 30.0
"""Seconds that a browser may take to send or to take something before its connection is closed."""
MOST = 8
"""Browsers that play at once."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Viewer(Protocol):
    """Frames for one browser."""

    def take(self) -> bytes | None:
        """Wait for a JPEG file; None at the end."""


class Played(Protocol):
    """A player, as far as its server is concerned."""

    state: dict[str, Any]

    def on_prompt(self, prompt: str, /) -> None: ...

    def subscribe(self) -> Any: ...

    def leave(self, viewer: Any) -> None: ...


class PageServer(ThreadingHTTPServer):
    """Serves one player on 127.0.0.1, each connection in a thread."""

    daemon_threads, block_on_close = True, False
    allow_reuse_address = os.name == "posix"  # elsewhere two programs would get one port

    def __init__(self, port: int, player: Played) -> None:
        self.player, self.playing = player, 0
        self.page = resources.files("fewstep.cli").joinpath("player.html").read_bytes()
        super().__init__(("127.0.0.1", port), PageHandler)
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a browser that goes away in the middle is no fault."""


class PageHandler(BaseHTTPRequestHandler):
    """One connection of a browser."""

    protocol_version, timeout = "HTTP/1.1", PATIENCE

    @property
    def home(self) -> PageServer:
        """The server."""
        return cast(PageServer, self.server)

    def do_GET(self) -> None:
        """The page, the video, or the state."""
        path = self.path.partition("?")[0]
        if not self._is_ours(link=path == "/"):
            return
        if path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.home.page)
        elif path == "/state":
            self._send(HTTPStatus.OK, "application/json", json.dumps(self.home.player.state).encode())
        elif path == "/video":
            self._video()
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        """A prompt, as ``{"prompt": "..."}``."""
        if not self._is_ours(link=False):
            return
        if self.path != "/prompt":
            return self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LONGEST:
            return self._refuse(HTTPStatus.BAD_REQUEST, f"a prompt has at most {LONGEST} bytes")
        try:
            prompt = json.loads(self.rfile.read(int(length)))["prompt"].strip()
            if not prompt:
                return self._refuse(HTTPStatus.BAD_REQUEST, "the prompt is empty: say what the video shows")
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError, RecursionError):
            return self._refuse(HTTPStatus.BAD_REQUEST, 'a prompt is sent as {"prompt": "..."}')
        self._hand_over(prompt)

    def _hand_over(self, prompt: str) -> None:
        """Give a prompt to whoever makes the frames, and answer what came of it."""
        try:
            self.home.player.on_prompt(prompt)
        except ValueError as error:
            return self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:  # without an answer the page would say that the command is not running
            said = " ".join(f"{type(error).__name__}: {error}".split())
            return self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"the video cannot go on with this prompt: {said}")
        self._send(HTTPStatus.OK, "application/json", b"{}")

    def _is_ours(self, *, link: bool) -> bool:
        """Refuse other sites: those whose name was bound to this address, and requests that they make a browser send.

        Args:
            link: the page itself may be opened from a link anywhere.
        """
        origin = self.headers.get("Origin")
        foreign = origin is not None and origin.removeprefix("http://") not in self.home.hosts
        foreign |= not link and self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none")
        if self.headers.get("Host") in self.home.hosts and not foreign:
            return True
        self._refuse(HTTPStatus.FORBIDDEN, "this page is for browsers on this machine alone")
        return False

    def _video(self) -> None:
        """Frames as ``multipart/x-mixed-replace`` until the browser goes or the player closes."""
        if self.home.playing >= MOST:
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST} browsers play this video already")
        self.home.playing += 1
        viewer = self.home.player.subscribe()
        try:
            self._start(HTTPStatus.OK, {"Content-Type": "multipart/x-mixed-replace; boundary=frame"})
            self.wfile.write(b"--frame\r\n")
            while (frame := viewer.take()) is not None:
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(frame)}\r\n\r\n".encode()
                self.wfile.write(head + frame + b"\r\n--frame\r\n")  # browsers show a frame once the next begins
        finally:
            self.home.player.leave(viewer)
            self.home.playing -= 1

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._send(status, "application/json", json.dumps({"error": reason}).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self._start(status, {"Content-Type": kind, "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _start(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.close_connection = True  # a body that was not read is no request, and a closed player answers no one
        for name, value in {**headers, **HEADERS, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
