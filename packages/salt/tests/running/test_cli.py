"""`fewstep run salt` and `fewstep export` as a user types them."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import threading
import time
from typing import Any

import imageio.v3 as iio
import pytest
from fewstep.cli import main
from fewstep.data.video_writer import VideoWriter
from fewstep.families import wan
from fewstep.families.wan_stream import WanStream
from fewstep_salt import Salt
from fewstep_salt.export import CausalFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, full_file):
    """A pipeline, and a causal student of it."""
    root = tmp_path_factory.mktemp("cli")
    wan.tiny_pipeline().save_pretrained(root / "base")
    method = Salt(weights=full_file, chunk=2, window=6, sink=1, relative=True, size=(13, 32, 48))
    CausalFolder(base=str(root / "base"))(method, root / "causal")
    method.save_pretrained(root / "saved")
    return root


@pytest.fixture
def fewstep(folder, monkeypatch, capsys):
    """The command line in this process, inside `folder`; returns exit code, stdout and stderr."""
    monkeypatch.chdir(folder)

    def call(*words) -> tuple[int, str, str]:
        threads = ["--threads", "1"] if words[0] == "run" else []
        code = main([*map(str, words), *threads])
        return code, *capsys.readouterr()

    return call


def run(*words):
    return "run", "salt", "--model", "causal", *words


def test_a_video_of_some_seconds_whose_prompt_changes(fewstep, folder, monkeypatch):
    switched = []
    switch = WanStream.switch
    monkeypatch.setattr(WanStream, "switch", lambda self, prompt: (switched.append(prompt), switch(self, prompt)))
    code, out, err = fewstep(*run("--prompt", "a cat runs, then a dog sleeps", "--seconds", 2, "--output", "out.mp4"))
    assert code == 0, err
    assert switched == ["a dog sleeps"]
    assert re.search(r"^\[1/5\] 5 frames, [\d.]+ FPS, first chunk [\d.]+ s, cache [\d.]+ KiB$", out, re.M)
    assert "frames: 32\n" in out and out.endswith("wrote out.mp4\n")
    written = iio.imread(folder / "out.mp4", plugin="pyav")
    assert written.shape == (32, 256, 384, 3), "the size of the student, enlarged, and no frame too many"


def test_fewer_steps_and_another_window(fewstep):
    words = ["--steps", 2, "--window", 5, "--sink", 0, "--seed", 3, "--height", 32, "--width", 32]
    code, out, err = fewstep(*run("--prompt", "a cat", "--seconds", 0.5, "--output", "two.mp4", *words))
    assert code == 0 and "frames: 8\n" in out, err


def test_a_saved_method_on_another_pipeline(fewstep):
    words = ["--method-from", "saved", "--prompt", "a cat", "--seconds", 0.3, "--output", "own.mp4"]
    code, out, err = fewstep("run", "salt", "--model", "base", *words)
    assert code == 0 and "frames: 5\n" in out, err


def test_ctrl_c_finishes_the_file(fewstep, folder, monkeypatch):
    add = VideoWriter.add

    def stopped(self, frames):
        add(self, frames)
        if self.frames > 20:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(VideoWriter, "add", stopped)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore Ctrl-C
    try:
        code, out, err = fewstep(*run("--prompt", "a cat", "--seconds", 60, "--output", "cut.mp4"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130 and "frames: 21\n" in out and "interrupted" in err
    assert "wrote cut.mp4: what there was when it was stopped" in out
    assert len(iio.imread(folder / "cut.mp4", plugin="pyav")) == 21


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "out.gif"], "written as .mp4"),
        (["--output", "none/out.mp4"], "no folder"),
        ([], "name a file with --output, or play the video with --stream"),
        (["--output", "out.mp4", "--seconds", "0"], "seconds must be above 0"),
        (["--output", "out.mp4", "--prompt", "a cat, then "], "the prompt is empty, or a part of it"),
        (["--stream", "--prompt", "a cat, then a dog"], "needs --seconds"),
        (["--output", "out.mp4", "--seconds", "0.5", "--prompt", "a, then a, then a"], "3 prompts need as many chunks"),
        (["--output", "out.mp4", "--window", "2"], "do not fit into a window of 2"),
        (["--output", "out.mp4", "--sink", "6"], "sink of 6 frames fills the window of 6"),
        (["--output", "out.mp4", "--no-relative"], "22 latent frames need more positions than the 16"),
        (["--output", "out.mp4", "--height", "33"], "height a multiple of 16"),
        (["--output", "out.mp4", "--weights", "none.pt"], "none.pt cannot be read"),
        (["--output", "out.mp4", "--model", "base"], "base is no causal student"),
        (["--stream", "--port", "70000"], "cannot be served on port 70000"),
    ],
    ids=lambda value: "-".join(value[-2:]) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(fewstep, folder, words, message):
    prompt = [] if "--prompt" in words else ["--prompt", "a"]
    model = [] if "--model" in words else ["--model", "causal"]
    code, _, err = fewstep("run", "salt", *model, *prompt, *words)
    line = err.strip().splitlines()[-1]
    assert code == 2 and line.startswith("fewstep: ") and message in line
    assert not list(folder.glob("*.part*"))


def test_a_page_plays_the_video_and_changes_its_prompt(fewstep):
    """The command runs here; a browser of a few lines waits for it in another thread."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    seen: dict[str, Any] = {}

    def ask(method: str, path: str, body: str | None = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(method, path, body)
        return connection.getresponse()

    def browse() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and "video" not in seen:
            with contextlib.suppress(OSError):
                seen["video"] = ask("GET", "/video")
        seen["first"] = seen["video"].read(2000)
        seen["posted"] = ask("POST", "/prompt", json.dumps({"prompt": "a dog sleeps"})).status
        while seen["video"].read(4096):
            with contextlib.suppress(OSError):
                seen["state"] = json.loads(ask("GET", "/state").read())

    browser = threading.Thread(target=browse)
    browser.start()
    words = ["--prompt", "a cat", "--seconds", 6, "--stream", "--fps", 30, "--port", port]
    code, out, err = fewstep(*run(*words))
    browser.join(60)
    assert code == 0 and f"playing on http://127.0.0.1:{port}/" in out, err
    assert b"Content-Type: image/jpeg" in seen["first"] and seen["posted"] == 200
    assert seen["state"]["prompt"] == "a dog sleeps" and seen["state"]["frames"] == "180"


def test_export_for_lightx2v(fewstep, folder):
    code, out, err = fewstep("export", "saved", "--format", "lightx2v")
    assert code == 0 and out.splitlines()[-1] == "wrote saved/lightx2v", err
    assert (folder / "saved" / "lightx2v" / "causal_model.safetensors").is_file()


def test_two_steps_of_sc_dmd(fewstep, full_file):
    words = ["--frames", 5, "--height", 32, "--width", 32, "--prompt", "dog", "--output", "sc.mp4", "--steps", 2]
    code, out, err = fewstep("run", "sc-dmd", "--model", "base", "--weights", full_file, *words)
    assert code == 0 and "network calls: 2" in out, err
