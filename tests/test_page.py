"""The report's page in a browser: of the committed results, from a file, at the width of a desk and of a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fewstep import plugins
from fewstep.bench.report import write_report

ROOT = Path(__file__).parents[1]
LARGEST = 3_000_000
"""Bytes that the page of the committed results may have."""
OPEN_ALL = "document.querySelectorAll('details').forEach((fold) => { fold.open = true; })"
SHOWN = "(selector) => [...document.querySelectorAll(selector)].filter((one) => one.checkVisibility())"


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


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(ROOT / "results", path, figures=None)
    return path


@pytest.fixture
def visit(browser, file) -> Iterator[Any]:
    """Opens the page at a width; afterwards nothing was asked of a network and no script failed."""
    pages: list[Any] = []
    wrong: list[str] = []

    def opened(width: int = 1400) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("request", lambda one: None if one.url.startswith(("file:", "data:")) else wrong.append(one.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(file.as_uri())
        pages.append(page)
        return page

    yield opened
    assert wrong == []
    for page in pages:
        page.close()


def shown(page: Any, selector: str, then: str = "length") -> Any:
    """What `then` says of the visible elements."""
    return page.evaluate(f"(selector) => ({SHOWN})(selector).{then}", selector)


def test_the_committed_results_make_a_small_page(file):
    assert file.stat().st_size < LARGEST


@pytest.mark.parametrize("width", [1400, 400])
def test_nothing_sticks_out_at_the_side(visit, width):
    page = visit(width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.evaluate(OPEN_ALL)
    assert page.evaluate("document.documentElement.scrollWidth") == width, "with everything unfolded"


def test_the_summary_comes_first_without_baselines_and_green_means_that_the_quality_held(visit):
    page = visit()
    assert page.locator("main section").first.get_attribute("id") == "summary"
    aside = {name for name, card in plugins.methods().items() if card.role != "method"}
    names = page.locator(".summary tbody th a").all_inner_texts()
    assert names and not aside & set(names)
    for line in page.locator(".summary tbody tr").all():
        if line.locator(".big.gain").count():
            assert line.locator(".pill.kept").count() == 1
    assert page.locator("section.method").last.get_attribute("id") == "kernels"


def test_only_the_sheets_of_the_summary_are_unfolded_and_its_links_open_the_others(visit):
    page = visit()
    visible, every = shown(page, ".sheet"), page.locator(".sheet").count()
    assert 0 < visible < every / 3
    assert shown(page, ".how pre") == 0
    page.locator(".how > summary").first.click()
    assert shown(page, ".how pre") > 0 and page.locator(".how pre").first.inner_text().startswith("fewstep bench")
    hidden = page.evaluate("[...document.querySelectorAll('.rest .sheet')].at(-1).id")
    page.evaluate(f"location.hash = '{hidden}'")
    page.wait_for_function(f"document.getElementById('{hidden}').open")
    assert page.locator(f"#{hidden}").is_visible()


@pytest.mark.parametrize("facet", ["method", "model", "task", "device", "dtype"])
def test_a_filter_leaves_the_sheets_and_lines_that_have_its_value(visit, facet):
    page = visit()
    choice = page.locator(f"select[name={facet}]")
    value = choice.locator("option").last.text_content()
    choice.select_option(value)
    facets = shown(page, ".sheet, .sortable tbody tr", "map((one) => JSON.parse(one.dataset.facets))")
    assert facets and all(value in one[facet] for one in facets)
    sheets = page.locator(".sheet").count()
    assert page.locator(".filters output").inner_text() == f"{shown(page, '.sheet')} of {sheets} sheets"
    page.get_by_role("button", name="show all").click()
    page.wait_for_function(f"document.querySelector('.filters output').textContent === '{sheets} of {sheets} sheets'")


def test_a_click_on_a_heading_sorts_down_then_up_with_the_unknown_last(visit):
    page = visit()
    head = page.locator(".sortable th", has_text="speed-up")
    read = "[...document.querySelectorAll('.sortable tbody tr')].map((row) => row.cells[1].dataset.value)"
    for state, down in (("descending", True), ("ascending", False)):
        head.locator("button").click()
        values = page.evaluate(read)
        known = [float(value) for value in values if value]
        assert known == sorted(known, reverse=down) and "" not in values[: len(known)]
        assert head.get_attribute("aria-sort") == state


@pytest.mark.parametrize("width", [1400, 400])
def test_figures_are_drawn_at_their_width_in_readable_letters(visit, width):
    page = visit(width)
    for plot in page.locator(".plot:visible").all():
        own = plot.bounding_box()
        assert own["width"] <= width
        texts = plot.locator("svg text").evaluate_all(
            "(all) => all.map((one) => one.getBoundingClientRect()).map((box) => [box.left, box.right, box.height])"
        )
        assert len(texts) > 5 and min(height for *_, height in texts) >= 12
        assert min(left for left, *_ in texts) >= 0 and max(right for _, right, _ in texts) <= width


def test_a_point_says_its_name_and_the_legend_hides_a_series(visit):
    page = visit()
    figure = page.locator(".chart:visible").first
    figure.scroll_into_view_if_needed()
    mark = figure.locator(".plot svg path").first.bounding_box()
    page.mouse.move(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
    assert figure.locator(".tip").is_visible() and " at " in figure.locator(".tip").inner_text()
    before = figure.locator(".plot svg path").count()
    figure.locator(".legend button").last.click()
    assert figure.locator(".plot svg path").count() < before


def test_clips_of_one_length_show_the_same_frame(visit):
    page = visit()
    frames = "[...document.querySelectorAll('.clip[data-frames=\"6\"]')].map((clip) => clip.dataset.frame)"
    page.wait_for_function(f"new Set({frames}).has('0')")
    page.wait_for_function(f"new Set({frames}).has('1')")
    now = page.evaluate(f"new Promise((done) => requestAnimationFrame(() => done({frames})))")
    assert len(now) > 3 and len(set(now)) == 1


@pytest.mark.parametrize("kind", [".clip", "img"])
def test_a_sample_is_enlarged_by_a_click(visit, kind):
    page = visit(400)
    small = page.locator(f".media:visible:has({kind})").first
    small.scroll_into_view_if_needed()
    width = small.locator(kind).bounding_box()["width"]
    small.click()
    dialog = page.locator("dialog[open]")
    assert dialog.locator(kind).bounding_box()["width"] > 1.4 * width
    page.keyboard.press("Escape")
    assert dialog.count() == 0
