"""Speed-up against context length: which comparisons make a line, and that the page and the folder show it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fewstep.bench import Row
from fewstep.bench.provenance import Provenance
from fewstep.bench.record import ArmConfig, Measurement, make_rows
from fewstep.bench.report import draw_figures, write_report
from fewstep.bench.rows import append
from fewstep.bench.scaling import length_series
from fewstep.bench.tables import compare


def run(name: str, device: str = "a cpu") -> Provenance:
    return Provenance(
        id=name, weights="random", device=device, hardware="cpu", dtype="float32", threads=2, versions={}, commit="abc",
        date="2026-01-02T03:04:05+00:00", command="fewstep bench",
    )  # fmt: skip


def row(method: str, length: int, metric: str, value: float, device: str = "a cpu", **other) -> Row:
    fields = {
        "task": "latency", "model": "llm", "run": run(f"r{length}", device), "unit": "x",
        "params": {"length": length, "new": 8, "seed": 0, "repeats": 1}, "baseline": "dense-sdpa-float32",
    }  # fmt: skip
    return Row(method=method, metric=metric, value=value, **{**fields, **other})


@pytest.fixture
def rows() -> list[Row]:
    made = []
    for length, ratio in ((4096, 20.0), (8192, 24.0), (16384, 28.0)):
        made += [row("quick", length, "generate_speedup", ratio), row("rival", length, "generate_speedup", ratio / 2)]
        made += [row("quick", length, "step_vs_rival_speedup", ratio / 10, baseline="rival")]
    return made


def test_lengths_of_one_task_make_a_line_for_each_arm(rows):
    (series,) = length_series(compare(rows[::-1]))
    assert series.metrics() == ["generate_speedup", "step_vs_rival_speedup"]
    assert series.lines("generate_speedup")["quick"] == [(4096, 20.0), (8192, 24.0), (16384, 28.0)]
    assert set(series.lines("step_vs_rival_speedup")) == {"quick"}


def test_two_lengths_make_no_figure_and_other_machines_no_line(rows):
    assert length_series(compare(rows[:-3])) == []
    assert list(draw_figures(compare(rows[:-3]))) == []
    elsewhere = [row("quick", 32768, "generate_speedup", 30.0, device="another")]
    assert len(length_series(compare(rows + elsewhere))[0].comparisons) == 3


def test_the_page_and_the_folder_show_the_figure(rows, tmp_path: Path):
    append(rows, tmp_path / "results" / "latency.jsonl")
    page, folder = tmp_path / "page.html", tmp_path / "figures"
    write_report(tmp_path / "results", page, figures=folder)
    text = page.read_text()
    assert "Generate speed-up by length" in text and '"x": 16384' in text
    assert (folder / "latency-llm-by-length.png").stat().st_size > 5000
    again = tmp_path / "again"
    write_report(tmp_path / "results", None, figures=again)
    name = "latency-llm-by-length.png"
    assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_a_task_compares_times_with_extra_baselines():
    def one(**seconds):
        return Measurement(seconds=seconds, quality={}, counts={})

    measured = {"dense": [one(all=8.0)], "quick": [one(all=1.0, step=0.1)], "rival": [one(all=2.0, step=0.3)]}
    arms = {"quick": ArmConfig("quick", {}), "rival": ArmConfig("rival", {})}
    rows = _rows(arms, measured, {"all": ("rival",), "step": ("rival", "absent")})
    ratios = {(r.method, r.metric): (r.value, r.baseline) for r in rows if r.unit == "x"}
    assert ratios == {
        ("quick", "all_speedup"): (8.0, "dense"),
        ("rival", "all_speedup"): (4.0, "dense"),
        ("quick", "all_vs_rival_speedup"): (2.0, "rival"),
        ("quick", "step_vs_rival_speedup"): (pytest.approx(3.0), "rival"),
    }
    silent = _rows(arms, measured, {"all": ("rival",)}, red={"quick"})
    assert not any(r.unit == "x" and r.method == "quick" for r in silent)


def _rows(arms, measurements, extra_baselines, red=()):
    common = {"task": "t", "model": "m", "params": {}, "run": run("r")}
    return make_rows(common, arms, measurements, "dense", red=red, extra_baselines=extra_baselines)
