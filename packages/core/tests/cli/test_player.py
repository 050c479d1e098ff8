"""The player: an even rate, slow and lost browsers, prompts, and no one from elsewhere."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import threading
import time

import pytest
import torch
from fewstep.cli.player import WAITING, Player, Viewer
from fewstep.errors import FewstepError

pytest.importorskip("PIL")


def frames(count=4, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def asked():
    return []


@pytest.fixture
def player(asked):
    def take(prompt):
        if prompt == "wrong":
            raise ValueError("the prompt is wrong")
        if prompt == "broken":
            raise KeyError("no such\nencoder")
        asked.append(prompt)

    with Player(take, fps=200, ahead=4) as made:
        yield made


def request(player, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", player._server.server_port, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer, answer.read()


@contextlib.contextmanager
def watching(player, buffer=None):
    """A connection that plays the video."""
    with socket.socket() as connection:
        connection.settimeout(20)
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.connect(("127.0.0.1", player._server.server_port))
        connection.sendall(f"GET /video HTTP/1.1\r\nHost: 127.0.0.1:{player._server.server_port}\r\n\r\n".encode())
        yield connection


def received(connection, count):
    """Bytes until there were `count` whole JPEG files."""
    data = b""
    while data.count(b"\xff\xd9\r\n--frame") < count:
        more = connection.recv(65536)
        assert more, "the connection ended"
        data += more
    return data


def feeding(player, count):
    thread = threading.Thread(target=lambda: [player.show(frames()) for _ in range(count)])
    thread.start()
    return thread


def test_frames_arrive_in_order_and_whole(player):
    from PIL import Image

    with watching(player) as connection:
        feeder = feeding(player, 2)
        data = received(connection, 8)
        feeder.join()
    files = [part.partition(b"\r\n\r\n")[2] for part in data.split(b"--frame\r\n")[1:9]]
    pictures = [Image.open(io.BytesIO(file)) for file in files]
    assert {picture.size for picture in pictures} == {(16, 16)}
    assert [file[:-2] for file in files[:4]] == [file[:-2] for file in files[4:]]


def test_whoever_makes_frames_waits_while_no_one_plays_them(player):
    feeder = feeding(player, 5)
    time.sleep(0.4)
    assert feeder.is_alive() and player._queue.full()
    with watching(player) as connection:
        received(connection, 12)
        feeder.join(10)
        assert not feeder.is_alive()


def test_the_rate_is_that_which_was_asked_for(asked):
    with Player(asked.append, fps=20, ahead=64) as player, watching(player) as connection:
        feeding(player, 8).join()
        received(connection, 1)
        begun = time.monotonic()
        received(connection, 20)
        assert 0.8 < time.monotonic() - begun < 3


def test_a_slow_browser_loses_frames_and_another_does_not_wait_for_it(player):
    with watching(player, buffer=4096), watching(player) as quick:
        feeder = threading.Thread(target=lambda: [player.show(frames(4, 128)) for _ in range(100)])
        feeder.start()
        received(quick, 300)
        feeder.join(30)
        assert not feeder.is_alive()
        waiting = [len(viewer._frames) for viewer in player._viewers]
        assert len(waiting) == 2 and max(waiting) <= WAITING and player._queue.qsize() <= 4


def test_a_browser_that_goes_and_comes_back_sees_the_newest_frame(player):
    with watching(player) as first:
        feeding(player, 1).join()
        received(first, 4)
    with watching(player) as second:
        received(second, 1)
    feeder = feeding(player, 500)  # that a browser has gone is noticed when frames are sent to it
    deadline = time.monotonic() + 10
    while player._viewers and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not player._viewers and feeder.is_alive()
    player.close()
    feeder.join(10)
    assert not feeder.is_alive()


def test_the_state_and_a_prompt(player, asked):
    player.state = {"prompt": "a cat", "fps": "17.1"}
    assert json.loads(request(player, "GET", "/state")[1]) == player.state
    assert request(player, "POST", "/prompt", json.dumps({"prompt": " a dog "}))[0].status == 200
    assert asked == ["a dog"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (json.dumps({"prompt": "wrong"}), "the prompt is wrong"),
        (json.dumps({"prompt": "  "}), "the prompt is empty"),
        (json.dumps({"prompt": 3}), "a prompt is sent as"),
        (json.dumps(["a"]), "a prompt is sent as"),
        ("{", "a prompt is sent as"),
        (b"\xff\xfe{", "a prompt is sent as"),
        ("x" * 20_000, "at most 16384 bytes"),
        ("[" * 16_000, "a prompt is sent as"),
    ],
    ids=["refused", "empty", "number", "list", "cut", "bytes", "long", "deep"],
)
def test_prompts_that_are_none_are_answered_in_one_sentence(player, asked, body, said):
    answer, told = request(player, "POST", "/prompt", body)
    assert answer.status == 400 and said in json.loads(told)["error"] and asked == []


def test_a_prompt_that_the_command_fails_on_is_answered(player, asked):
    answer, told = request(player, "POST", "/prompt", json.dumps({"prompt": "broken"}))
    assert answer.status == 500 and asked == []
    assert json.loads(told)["error"].startswith("the video cannot go on with this prompt: KeyError")
    assert request(player, "POST", "/prompt", json.dumps({"prompt": "a dog"}))[0].status == 200


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/", {"Host": "evil.example"}),
        ("GET", "/video", {"Host": "evil.example:80"}),
        ("GET", "/state", {"Origin": "http://evil.example"}),
        ("GET", "/video", {"Sec_Fetch_Site": "cross-site"}),
        ("POST", "/prompt", {"Origin": "null"}),
        ("POST", "/prompt", {"Origin": "http://127.0.0.1:1"}),
        ("POST", "/prompt", {"Sec_Fetch_Site": "same-site"}),
    ],
)
def test_other_sites_get_nothing(player, asked, method, path, headers):
    answer, told = request(player, method, path, json.dumps({"prompt": "a"}) if method == "POST" else None, **headers)
    assert answer.status == 403 and b"this machine alone" in told and asked == []


def test_the_page_comes_from_here_alone_and_names_no_other_place(player):
    answer, page = request(player, "GET", "/", Sec_Fetch_Site="cross-site")
    assert answer.status == 200 and "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert b"http://" not in page and b"https://" not in page and b"//cdn" not in page
    assert player.address.startswith("http://127.0.0.1:")
    assert player._server.server_address[0] == "127.0.0.1"
    assert request(player, "GET", "/other")[0].status == 404


def test_only_so_many_browsers_play_at_once(player):
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            received(stack.enter_context(watching(player)), 0)
        deadline = time.monotonic() + 10
        while player._server.playing < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert request(player, "GET", "/video")[0].status == 503


def test_a_short_video_waits_for_a_first_browser_and_is_played_to_its_last_frame(asked):
    with Player(asked.append, fps=50, ahead=24) as player:
        player.show(frames(6))
        last = threading.Thread(target=lambda: (player.drain(), player.close()))
        last.start()
        time.sleep(0.5)
        assert last.is_alive()
        with watching(player) as connection:
            received(connection, 6)
        last.join(10)
        assert not last.is_alive()


def test_draining_ends_with_the_last_frame_that_is_played_not_with_the_last_that_is_taken(asked):
    with Player(asked.append, fps=2) as player, watching(player):
        player.show(frames(2))
        begun = time.monotonic()
        player.drain()
        assert time.monotonic() - begun > 0.6 and player._last is not None


def test_draining_ends_when_the_browser_goes(asked):
    with Player(asked.append, fps=1, ahead=24) as player:
        player.show(frames(20))
        viewer = player.subscribe()
        threading.Timer(0.5, player.leave, [viewer]).start()
        begun = time.monotonic()
        player.drain()
        assert time.monotonic() - begun < 10


def test_a_viewer_gets_the_frames_that_wait_before_the_end():
    viewer = Viewer()
    viewer.offer(b"1")
    viewer.offer(b"2")
    viewer.close()
    assert [viewer.take(), viewer.take(), viewer.take(), viewer.take()] == [b"1", b"2", None, None]


def test_closing_ends_everything_and_again_does_nothing(asked):
    before = threading.active_count()
    player = Player(asked.append)
    with watching(player) as connection:
        player.show(frames(2))
        received(connection, 2)
        player.close()
        player.close()
        player.show(frames(100))
        player.drain()
        while connection.recv(65536):
            pass
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == before


def test_a_port_that_is_taken_is_said(player):
    with pytest.raises(FewstepError, match=f"port {player._server.server_port}"):
        Player(print, port=player._server.server_port)
    with pytest.raises(FewstepError, match="port 70000"):
        Player(print, port=70000)
