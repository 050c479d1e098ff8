"""The report says what the rows say, dense first, in one file that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fewstep import FewstepError, plugins
from fewstep.bench import Row, shares
from fewstep.bench.formatting import amount, verdict
from fewstep.bench.pareto import front, points
from fewstep.bench.plots import save
from fewstep.bench.provenance import Provenance
from fewstep.bench.readme import check_readme, readme_table, update_readme
from fewstep.bench.report import draw_figures, markdown, write_report
from fewstep.bench.rows import append
from fewstep.bench.tables import compare, load
from fewstep.errors import BadFileError

PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
HALF, QUARTER = {"keep": 0.5}, {"keep": 0.25}


RUN = {
    "id": "r1", "weights": "trained", "device": "a cpu", "hardware": "cpu", "dtype": "float32", "threads": 2,
    "versions": {"torch": "2.13.0"}, "commit": "abc1234", "date": "2026-01-02T03:04:05+00:00",
    "command": "fewstep bench slim-infer --task needle",
}  # fmt: skip


def row(method: str, metric: str, value: float, unit: str = "", **other) -> Row:
    """A row; `other` are fields of it or of its run."""
    fields = {
        "task": "needle", "model": "tiny-llm", "params": {"length": 8192, "seed": 0, "repeats": 5},
        "baseline": "dense-sdpa-float32" if unit == "x" else None,
    }  # fmt: skip
    run = Provenance(**{name: other.pop(name, value) for name, value in RUN.items()})
    return Row(method=method, metric=metric, value=value, unit=unit, run=run, **{**fields, **other})


def one_run(**other) -> list[Row]:
    """A run whose dense arm comes last, so that its place in the table is not the order of the file."""
    return [
        row("slim-infer", "accuracy", 0.93, config=HALF, **other),
        row("slim-infer", "ttft", 0.48, "s", config=HALF, spread=(0.46, 0.51), **other),
        row("slim-infer", "ttft_speedup", 1.5, "x", config=HALF, spread=(1.42, 1.59), **other),
        row("slim-infer", "kv_bytes", 2.0**20, "B", config=HALF, spread=(2.0**20, 2.0**20), **other),
        row("slim-infer", "accuracy", 0.9, config=QUARTER, **other),
        row("slim-infer", "ttft", 0.36, "s", config=QUARTER, **other),
        row("slim-infer", "ttft_speedup", 2.0, "x", config=QUARTER, spread=(1.9, 2.1), **other),
        row("slim-infer", "kv_bytes", 2.0**19, "B", config=QUARTER, **other),
        row("dense", "ttft", 0.72, "s", **other),
        row("dense", "accuracy", 0.94, **other),
        row("dense", "kv_bytes", 2.0**21, "B", **other),
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    append(one_run(), tmp_path / "results" / "needle.jsonl")
    return tmp_path / "results"


class Page(HTMLParser):
    """Collects what the tests ask: cells of the tables, references, tags, and text."""

    def __init__(self, text: str):
        super().__init__()
        self.cells: list[list[str]] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self.open = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
            self.open = True
        if tag == "small" and self.open:
            self.cells[-1][-1] += " "

    def handle_endtag(self, tag):
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data
            return
        self.text += data
        if self.open:
            self.cells[-1][-1] += data


def test_the_table_says_what_the_rows_say_with_dense_first(source):
    lines = write_report(source, None, figures=None).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table == [
        "| arm | time to first token | time to first token speed-up ↑ | accuracy ↑ | KV memory |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| dense | 720 ms | – | 0.94 | 2.00 MiB |",
        "| slim-infer keep=0.5 | 480 ms [460, 510] | 1.50x [1.42, 1.59] | 0.93 | 1.00 MiB |",
        "| slim-infer keep=0.25 | 360 ms | 2.00x [1.90, 2.10] | 0.9 | 512 KiB |",
    ]
    text = "\n".join(lines)
    for needed in (
        "a cpu, 2 threads, float32",
        "tiny-llm (cpu, 2 threads, float32)",
        "seed 0, repeats 5",
        "torch 2.13.0",
        "abc1234",
        "2026-01-02",
        "against dense-sdpa-float32",
    ):
        assert needed in text
    assert "```\nfewstep bench slim-infer --task needle\n```" in text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(3.214, "s", "3.21 s"), (0.0042, "s", "4.20 ms"), (2.5e-5, "s", "25.0 µs"), (150.0, "s", "150 s"),
     (0.0, "s", "0 µs"), (1.794, "x", "1.79x"), (0.04, "x", "0.0400x"), (1536, "B", "1.50 KiB"), (12, "B", "12.0 B"),
     (0.00123, "", "0.00123"), (-0.01, "", "-0.01"), (12345, "", "12,345"), (float("nan"), "", "nan"),
     (9.87, "tokens/s", "9.87 tokens/s")],
)  # fmt: skip
def test_units_are_for_people(value, unit, text):
    assert amount(row("dense", "any", value, unit)) == text


def test_rows_of_a_dirty_checkout_are_marked_wherever_they_are_shown(tmp_path):
    rows = [*one_run(), row("llmc-plus", "ttft_speedup", 1.2, "x", id="r2", commit="abc1234+dirty")]
    append(rows, tmp_path / "needle.jsonl")
    text = write_report(tmp_path, tmp_path / "out.html", figures=None)
    assert (
        "| llmc-plus † |" in text and text.count("†") == 2 and "† Measured on a checkout whose files differed" in text
    )
    page = Page((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert ["llmc-plus †", "–", "1.20x", "–", "–"] in page.cells


def test_superseded_rows_are_left_out(source):
    append([row("dense", "ttft", 99.0, "s", superseded=True)], source / "needle.jsonl")
    text = write_report(source, None, figures=None)
    assert "99.0 s" not in text and "720 ms" in text


def test_the_newest_run_of_an_arm_is_shown_and_older_ones_are_mentioned():
    newer = {"id": "r2", "date": "2026-01-02T04:04:05+00:00", "params": {"length": 8192, "seed": 7, "repeats": 2}}
    again = [row("slim-infer", "ttft_speedup", 1.7, "x", config=HALF, **newer), row("dense", "ttft", 0.8, "s", **newer)]
    for rows in (one_run() + again, again + one_run()):  # the date decides, not the place in the file
        (comparison,) = compare(rows)
        arms = {arm.label: arm for arm in comparison.arms}
        assert arms["slim-infer keep=0.5"].rows["ttft_speedup"].value == 1.7
        assert "accuracy" not in arms["slim-infer keep=0.5"].rows, "an arm is never mixed from two runs"
        assert arms["slim-infer keep=0.25"].dense["ttft"].value == 0.72, "compared with the dense model of its own run"
        text = markdown(rows)
        assert "Older runs, not shown: dense (1), slim-infer keep=0.5 (1)." in text and "several runs" in text


def test_other_params_or_machines_are_other_tables():
    rows = one_run() + one_run(id="r2", params={"length": 2048}) + one_run(id="r3", threads=8)
    rows += one_run(id="r4", hardware="cuda", device="a gpu")
    tables = [(c.params["length"], c.setting.threads, c.setting.hardware) for c in compare(rows)]
    assert tables == [(8192, 2, "cpu"), (2048, 2, "cpu"), (8192, 8, "cpu"), (8192, 2, "cuda")]
    names = {names for names, _ in draw_figures(compare(rows))}
    assert names == {("needle", "tiny-llm"), ("needle", "tiny-llm", "cuda")}, "files of the two stand apart"


def test_random_weights_are_marked_and_get_no_figure(tmp_path):
    rows = [row for row in one_run(weights="random") if row.metric != "accuracy"]
    append(rows, tmp_path / "needle.jsonl")
    write_report(tmp_path, tmp_path / "out.html", figures=tmp_path / "figures")
    page = Page((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert "Random weights: mechanics only." in page.text and "figure" not in page.tags
    assert "Random weights: mechanics only." in markdown(rows)
    assert not (tmp_path / "figures").exists()


def test_a_speedup_counts_only_if_every_repeat_says_so():
    spreads = {(1.1, 1.3): "gain", (0.9, 1.3): "", (0.7, 0.9): "loss"}
    assert {s: verdict(row("m", "ttft_speedup", 1.0, "x", spread=s)) for s in spreads} == spreads


def test_points_are_paired_ratios_and_the_front_drops_what_is_beaten():
    slow = [row("llmc-plus", "ttft_speedup", 0.8, "x"), row("llmc-plus", "accuracy", 0.92)]
    (comparison,) = compare(one_run() + slow)
    found = points(comparison)
    assert {p.arm.label: (p.x, p.y) for p in found} == {
        "dense": (1.0, 0.94), "slim-infer keep=0.5": (1 / 1.5, 0.93), "slim-infer keep=0.25": (0.5, 0.9),
        "llmc-plus": (1.25, 0.92),
    }  # fmt: skip
    assert found[1].x_error == pytest.approx((1 / 1.5 - 1 / 1.59, 1 / 1.42 - 1 / 1.5))
    assert [p.arm.label for p in front(found, True)] == ["slim-infer keep=0.25", "slim-infer keep=0.5", "dense"]


def test_a_race_of_recipes_has_no_figure_against_dense():
    """Its ratios are against another recipe: dense is not 1x there."""
    rows = [
        row("sgmd-digits", "iteration_speedup", 2.4, "x", baseline="dmd2-digits"),
        row("sgmd-digits", "accuracy", 0.97),
        row("dense", "accuracy", 0.98),
    ]
    (comparison,) = compare(rows)
    assert points(comparison) == []


def test_lower_is_better_for_kl_and_dense_is_zero_by_definition():
    kl = [dataclasses.replace(r, metric="kl", value=1 - r.value) if r.metric == "accuracy" else r for r in one_run()]
    (comparison,) = compare([r for r in kl if not (r.method == "dense" and r.metric == "kl")])
    found = points(comparison)
    assert next(p.y for p in found if p.arm.method == "dense") == 0.0
    assert [p.arm.label for p in front(found, False)][-1] == "dense"
    assert "KL to dense ↓" in markdown(kl)


def test_figures_are_small_repeatable_and_name_every_arm(tmp_path):
    comparisons = compare(one_run(model="org/tiny llm"))
    ((names, figure),) = draw_figures(comparisons)
    png, svg = save(figure, tmp_path / "a", *names)  # a slash in a model's name makes no folder
    again = [path for names, figure in draw_figures(comparisons) for path in save(figure, tmp_path / "b", *names)]
    assert png.name == "needle-org-tiny-llm.png" and svg.name == "needle-org-tiny-llm.svg"
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and png.stat().st_size < 200_000
    assert [png.read_bytes(), svg.read_bytes()] == [path.read_bytes() for path in again]
    text = svg.read_text(encoding="utf-8")
    assert all(arm.label in text for arm in comparisons[0].arms) and "accuracy" in text


def test_without_matplotlib_table_and_page_still_come_and_figures_say_what_to_install(source, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "| dense |" in write_report(source, tmp_path / "out.html", figures=None)
    assert "slim-infer" in (tmp_path / "out.html").read_text(encoding="utf-8")
    with pytest.raises(FewstepError, match=r'pip install "fewstep-core\[bench\]"'):
        write_report(source, None, figures=tmp_path / "figures")


def store_samples(source: Path, arms: dict) -> None:
    (source / "samples").mkdir()
    (source / "samples" / "pixel.gif").write_bytes(PIXEL)
    (source / "secret.png").write_bytes(b"secret")
    text = json.dumps({"task": "needle", "model": "tiny-llm", "arms": arms})
    (source / "samples" / "r1.json").write_text(text, encoding="utf-8")


def test_the_page_is_one_file_with_table_figure_and_samples(source, tmp_path):
    texts = ["<script>alert(1)</script>", "as the letter says"]
    store_samples(source, {
        "slim-infer keep=0.5": [{"title": "Who wrote it?", "text": texts[0], "file": None}],
        "dense": [{"title": "Who wrote it?", "text": texts[1], "file": None},
                  {"title": "A picture", "text": None, "file": "pixel.gif"}],
    })  # fmt: skip
    write_report(source, tmp_path / "deep" / "out.html", figures=None)
    html = (tmp_path / "deep" / "out.html").read_text(encoding="utf-8")
    page = Page(html)
    assert all(reference.startswith(("#", "data:image/")) for reference in page.references)
    assert "alert" not in "".join(page.scripts) and "link" not in page.tags
    assert "@import" not in html and "url(http" not in html and "fetch(" not in html
    assert any(reference.startswith("data:image/") for reference in page.references)
    assert texts[0] in page.text, "shown as text, not run"
    assert page.text.index(texts[1]) < page.text.index(texts[0]), "dense comes first"
    assert page.tags.count("figure") == 1 and "prefers-color-scheme: dark" in html
    for line in (
        ["dense", "720 ms", "–", "0.94", "2.00 MiB"],
        ["slim-infer keep=0.5", "480 ms [460, 510]", "1.50x [1.42, 1.59]", "0.93", "1.00 MiB"],
        ["slim-infer keep=0.25", "360 ms", "2.00x [1.90, 2.10]", "0.9", "512 KiB"],
    ):
        assert line in page.cells
    summary = page.cells[1]
    assert "keep 0.5" in summary[0] and "1.50x" in summary[1], "keep 0.25 is faster and loses 4 %"
    assert "accuracy 0.93" in summary[2] and "held" in summary[2] and "dense 0.94" in summary[2]


def test_names_are_text_in_the_figure_too(source, tmp_path):
    odd = {"config": {"note": "<script>$x_2$"}}
    append([row("odd", "ttft_speedup", 1.2, "x", **odd), row("odd", "accuracy", 0.8, **odd)], source / "needle.jsonl")
    text = write_report(source, tmp_path / "out.html", figures=None)
    page = Page((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert all("$x_2$" not in script or script.startswith("{") for script in page.scripts), "only as data of a figure"
    assert "<script>" not in text and "odd note=<script>$x_2$" in page.text


@pytest.mark.parametrize("file", ["gone.gif", "../secret.png", "r1.json", "/etc/passwd"])
def test_a_file_that_is_missing_or_no_image_of_ours_is_shown_as_missing(source, tmp_path, file):
    store_samples(source, {"dense": [{"title": "A picture", "text": None, "file": file}]})
    write_report(source, tmp_path / "out.html", figures=None)
    page = Page((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert f"missing: {file}" in page.text and "img" not in page.tags


@pytest.mark.parametrize("arms", [[1], {"dense": [{"text": "no title"}]}, {"dense": 3}])
def test_a_damaged_samples_file_is_named(source, tmp_path, arms):
    store_samples(source, arms)
    with pytest.raises(BadFileError, match="r1.json is not a samples file"):
        write_report(source, tmp_path / "out.html", figures=None)


def test_no_rows_is_one_sentence_with_the_folder_and_the_command(tmp_path):
    append([row("dense", "ttft", 1.0, "s", superseded=True)], tmp_path / "old" / "needle.jsonl")
    for folder in (tmp_path / "absent", tmp_path / "old"):
        with pytest.raises(FewstepError, match=f"rows in {folder}: `fewstep bench"):
            write_report(folder, tmp_path / "out.html", figures=None)


def test_an_output_that_cannot_be_written_is_an_oserror(source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        write_report(source, tmp_path / "file" / "out.html", figures=None)


def test_the_readme_table_has_each_method_once_in_words():
    random = [row("slim-infer", "ttft_speedup", 9.0, "x", weights="random", id="r9")]
    other = [
        row("sgmd", "total_speedup", 7.9, "x", task="digits", params={}, config={"keep_all": False, "at": [1, 2]}),
        row("sgmd", "kl", 0.03, task="digits", params={}, config={"keep_all": False, "at": [1, 2]}),
    ]
    reading = [dataclasses.replace(one, task="reading") for one in one_run() + random] + other
    cost = "1.50x [1.42, 1.59] (time to first token) | accuracy 0.93 (dense 0.94) | KV memory 0.50x"
    assert readme_table(reading).splitlines() == [
        "| method | model and task | speed-up | quality beside dense | memory |",
        "| --- | --- | ---: | ---: | ---: |",
        "| sgmd, no keep all, at 1/2 | tiny-llm: digits | 7.90x (total) | KL to dense 0.03 | – |",
        f"| slim-infer, keep 0.5 | tiny-llm: reading, 8,192 tokens | {cost} |",
    ]


def test_the_readme_shows_the_default_else_the_fastest_that_keeps_the_quality():
    def table(*extra: Row) -> str:
        return readme_table([*one_run(), *extra])

    assert "slim-infer, keep 0.5" in table(), "keep 0.25 is faster and loses 4 %"
    default = [row("slim-infer", "ttft_speedup", 1.1, "x", spread=(1.0, 1.2)), row("slim-infer", "accuracy", 0.5)]
    assert "| slim-infer |" in table(*default)
    dirty = [dataclasses.replace(one, run=dataclasses.replace(one.run, id="r2", commit="a+dirty")) for one in default]
    dirty = [dataclasses.replace(one, params={}, value=3 * one.value) for one in dirty]
    assert "| slim-infer |" in table(*default, *dirty) and "†" not in table(*default, *dirty)
    assert "| slim-infer † |" in table(*dirty) and table(*dirty).endswith("differed from its commit.")


def test_the_readme_table_leaves_out_what_was_measured_on_tuning_data():
    def halves(split: str, value: float) -> list[Row]:
        params = {"length": 512, "split": split}
        return [row("slim-infer", "ttft_speedup", value, "x", task="facts", params=params, spread=(value, value))]

    both = readme_table([*halves("held-out", 1.2), *halves("tuning", 1.9)])
    assert "1.20x" in both and "1.90x" not in both


def test_the_readme_table_leaves_out_kernels_baselines_and_ablations():
    kernel = row("quick", "attention_speedup", 9.0, "x", task="unit-score")
    assert "quick" not in readme_table([*one_run(), kernel])
    baselines = [name for name, card in plugins.recipes().items() if card.role == "baseline"]
    for name in baselines:
        assert name not in readme_table([*one_run(), row(name, "ttft_speedup", 9.0, "x")])


def test_the_readme_has_a_table_for_each_kind_of_hardware():
    text = readme_table(one_run() + one_run(id="r2", hardware="cuda", device="a gpu"))
    assert text.startswith("**cpu**\n\n| method |") and "\n\n**cuda**\n\n| method |" in text


def test_the_readme_is_checked_and_updated_between_its_markers(source, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# A\n\n<!-- rows:begin -->\nold\n<!-- rows:end -->\n\nafter\n", encoding="utf-8")
    assert not check_readme(readme, source)
    update_readme(readme, source)
    assert check_readme(readme, source)
    table = readme_table(load(source))
    assert readme.read_text(encoding="utf-8") == f"# A\n\n<!-- rows:begin -->\n{table}\n<!-- rows:end -->\n\nafter\n"
    readme.write_text("# no markers\n", encoding="utf-8")
    with pytest.raises(FewstepError, match="rows:begin"):
        update_readme(readme, source)


def test_methods_that_skip_are_drawn_against_the_share_that_they_skip(tmp_path: Path):
    pytest.importorskip("matplotlib")
    rows = [row("dense", "accuracy", 0.94), row("dense", "skipped_share", 0.0)]
    for method, losses in (("modes", (0.0, 0.01)), ("reduce-k", (0.02, 0.3))):
        for target, loss in zip((0.5, 0.75), losses, strict=True):
            rows += [
                row(method, "accuracy", 0.94 - loss, config={"target": target}, spread=(0.9 - loss, 0.95 - loss)),
                row(method, "skipped_share", target, config={"target": target}),
                row(method, "kl", 0.01 + loss, config={"target": target}),
            ]
    (comparison,) = compare(rows)
    assert {name: [(x, y) for x, y, _ in line] for name, line in shares.lines(comparison, "accuracy").items()} == {
        "modes": [(0.5, 0.94), (0.75, pytest.approx(0.93))],
        "reduce-k": [(0.5, pytest.approx(0.92)), (0.75, pytest.approx(0.64))],
    }
    append(rows, tmp_path / "results" / "needle.jsonl")
    write_report(tmp_path / "results", tmp_path / "page.html", figures=tmp_path / "figures")
    assert "skipped" in (tmp_path / "page.html").read_text() and "reduce-k" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "figures" / "needle-tiny-llm-skipped.svg").is_file()
    assert shares.draw(compare(one_run())[0]) is None
