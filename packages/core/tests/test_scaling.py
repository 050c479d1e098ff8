"""Speed-up against context length: which comparisons make a line, and that the page and the folder show it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fewstep.bench import Row
from fewstep.bench.record import Measured, Named, make_rows
from fewstep.bench.report import write_report
from fewstep.bench.rows import append
from fewstep.bench.scaling import families, save_scaling
from fewstep.bench.tables import compare


def row(method: str, length: int, metric: str, value: float, **other) -> Row:
    fields = {
        "task": "latency", "model": "llm", "run": f"r{length}", "weights": "random", "device": "cpu",
        "dtype": "float32", "threads": 2, "versions": {}, "commit": "abc", "date": "2026-01-02T03:04:05+00:00",
        "command": "fewstep bench", "params": {"length": length, "new": 8, "seed": 0, "repeats": 1}, "unit": "x",
        "baseline": "dense-sdpa-float32",
    }  # fmt: skip
    return Row(method=method, metric=metric, value=value, **{**fields, **other})


@pytest.fixture
def rows() -> list[Row]:
    found = []
    for length, ratio in ((4096, 20.0), (8192, 24.0), (16384, 28.0)):
        found += [row("quick", length, "generate_speedup", ratio), row("peer", length, "generate_speedup", ratio / 2)]
        found += [row("quick", length, "step_vs_peer_speedup", ratio / 10, baseline="peer")]
    return found


def test_lengths_of_one_task_make_a_line_for_each_arm(rows):
    (family,) = families(compare(rows[::-1]))
    assert family.metrics() == ["generate_speedup", "step_vs_peer_speedup"]
    assert family.lines("generate_speedup")["quick"] == [(4096, 20.0), (8192, 24.0), (16384, 28.0)]
    assert set(family.lines("step_vs_peer_speedup")) == {"quick"}


def test_two_lengths_make_no_figure_and_other_machines_no_line(rows, tmp_path):
    assert families(compare(rows[:-3])) == []
    assert save_scaling(compare(rows[:-3]), tmp_path) == []
    elsewhere = [row("quick", 32768, "generate_speedup", 30.0, device="gpu")]
    assert len(families(compare(rows + elsewhere))[0].comparisons) == 3


def test_the_page_and_the_folder_show_the_figure(rows, tmp_path: Path):
    append(rows, tmp_path / "results" / "latency.jsonl")
    page, folder = tmp_path / "page.html", tmp_path / "figures"
    write_report(tmp_path / "results", page, figures=folder)
    text = page.read_text()
    assert text.count("<svg") == 1 and "scaling0-" in text and "16,384" in text
    assert (folder / "latency-llm-by-length.png").stat().st_size > 5000
    again = tmp_path / "again"
    write_report(tmp_path / "results", None, figures=again)
    name = "latency-llm-by-length.png"
    assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_a_task_compares_times_with_arms_beside_dense():
    def one(**seconds):
        return Measured(seconds=seconds, quality={}, counts={}, samples=())

    found = {"dense": [one(all=8.0)], "quick": [one(all=1.0, step=0.1)], "peer": [one(all=2.0, step=0.3)]}
    arms = {"quick": Named("quick", {}), "peer": Named("peer", {})}
    rows = _rows(arms, found, {"all": ("peer",), "step": ("peer", "absent")})
    ratios = {(r.method, r.metric): (r.value, r.baseline) for r in rows if r.unit == "x"}
    assert ratios == {
        ("quick", "all_speedup"): (8.0, "dense"),
        ("peer", "all_speedup"): (4.0, "dense"),
        ("quick", "all_vs_peer_speedup"): (2.0, "peer"),
        ("quick", "step_vs_peer_speedup"): (pytest.approx(3.0), "peer"),
    }
    silent = _rows(arms, found, {"all": ("peer",)}, red={"quick"})
    assert not any(r.unit == "x" and r.method == "quick" for r in silent)


def _rows(arms, found, beside, red=()):
    common = {
        "task": "t", "model": "m", "params": {}, "run": "r", "weights": "random", "device": "cpu", "dtype": "float32",
        "threads": 1, "versions": {}, "commit": "", "date": "2026-01-02T03:04:05+00:00", "command": "c",
    }  # fmt: skip
    return make_rows(common, arms, found, "dense", red, beside=beside)
