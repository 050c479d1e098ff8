"""The page of ``fewstep run salt --stream`` in a browser: it plays, takes prompts, and says when the stream is over."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fewstep.cli.player import Player
from fewstep.families import wan
from fewstep_salt import Salt
from fewstep_salt.making import Made

PIXELS = """() => {
    const canvas = document.createElement("canvas"), image = document.getElementById("video");
    canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
    if (!canvas.width) return "";
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL();
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no browser: apt-get install chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def player() -> Iterator[Player]:
    """A stream of a tiny causal Wan, made in a thread while the page is open."""
    pipe = wan.tiny_pipeline()
    pipe.tokenizer.model_max_length = 8
    method = Salt(steps=(1000,), chunk=2, window=4, sink=1, relative=True)
    with method.apply(pipe), method.stream(pipe, "a cat runs", height=32, width=48) as stream:
        made = Player(stream.switch, fps=16)
        feeder = threading.Thread(target=feed, args=(stream, made))
        feeder.start()
        yield made
        stream.close()
        made.close()
        feeder.join()


def feed(stream: Any, player: Player) -> None:
    torch.set_num_threads(1)
    figures = Made(None)
    for chunk in stream:
        frames = figures.add(chunk, 0.0)
        player.state = {"prompt": stream.prompt, **figures.shown()}
        player.show(frames)


@pytest.fixture
def visit(browser, player) -> Iterator[Any]:
    """Opens the page at a width; afterwards nothing was asked of another place and no script failed."""
    pages: list[Any] = []
    wrong: list[str] = []

    def opened(width: int = 1000) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900})
        here = (player.address, "data:")
        page.on("request", lambda one: None if one.url.startswith(here) else wrong.append(one.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(player.address, wait_until="commit")
        pages.append(page)
        return page

    yield opened
    assert wrong == []
    for page in pages:
        page.close()


def text(page: Any, name: str) -> str:
    return page.locator(f"#{name}").inner_text()


def until(page: Any, condition: Callable[[], Any]) -> None:
    """Wait for it; the browser's own waiting evaluates strings, which the page forbids."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, text(page, "said")
        page.wait_for_timeout(50)


def moves(page: Any) -> None:
    """Return once the picture was seen to change."""
    until(page, lambda: page.evaluate(PIXELS))
    before = page.evaluate(PIXELS)
    until(page, lambda: page.evaluate(PIXELS) != before)


def test_it_plays_and_shows_what_it_costs(visit):
    page = visit()
    moves(page)
    until(page, lambda: text(page, "fps") != "–")
    assert text(page, "prompt") == "a cat runs" and float(text(page, "fps")) > 0
    assert text(page, "first").endswith(" s") and text(page, "cache").endswith("iB")
    box = page.locator(".screen").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(48 / 32, rel=0.01)


def test_a_prompt_takes_over_and_a_wrong_one_is_told(visit):
    page = visit()
    page.fill("#next", "a dog sleeps")
    page.keyboard.press("Enter")
    until(page, lambda: text(page, "prompt") == "a dog sleeps")
    assert page.input_value("#next") == ""
    page.fill("#next", "a dog sleeps " * 4)
    page.get_by_role("button", name="go on").click()
    until(page, lambda: "12 tokens and the model reads 8" in text(page, "said"))
    moves(page)
    assert text(page, "prompt") == "a dog sleeps" and page.input_value("#next") != ""


def test_nothing_sticks_out_on_a_phone(visit):
    page = visit(400)
    moves(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert page.locator("#video").bounding_box()["width"] > 300
    assert page.locator("#next").bounding_box()["width"] > 150


def test_a_page_that_was_closed_can_be_opened_again(visit, player):
    page = visit()
    moves(page)
    page.close()
    moves(visit())


def test_the_end_of_the_command_is_told(visit, player):
    page = visit()
    moves(page)
    player.close()
    until(page, lambda: "the stream has ended" in text(page, "said"))
    player.close()
