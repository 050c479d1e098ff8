"""Progress says where one is: count, share and time left first, few lines when piped, and within 40 columns."""

from __future__ import annotations

import io

from fewstep.bench.settings import Event
from fewstep.cli.progress import BarProgress, PlainProgress
from rich.console import Console

METRICS = {"student/dmd": 0.51, "critic/velocity": 1.25, "student/extra": 3.0, "student/gradient": 9.0}


def steps(seconds: float, total: int, capsys) -> list[str]:
    """The lines of `total` steps that take `seconds` each."""
    now = [0.0]
    progress = PlainProgress(lambda: now[0])
    for done in range(1, total + 1):
        now[0] += seconds
        progress.step(done, total, METRICS)
    return capsys.readouterr().out.splitlines()


def test_plain_lines_come_every_few_seconds_with_two_figures(capsys):
    lines = steps(0.5, 200, capsys)
    assert len(lines) == 21, "the first of 100 seconds, one every five, and the last"
    assert lines[0] == "[1/200] student/dmd 0.51, critic/velocity 1.25"
    assert lines[1] == "[11/200] 5%, 1:34 left: student/dmd 0.51, critic/velocity 1.25"
    assert lines[-1] == "[200/200] student/dmd 0.51, critic/velocity 1.25"
    assert len(steps(600.0, 40, capsys)) == 40


def test_hours_that_are_left_are_hours(capsys):
    assert steps(600.0, 40, capsys)[1] == "[2/40] 5%, 6:20:00 left: student/dmd 0.51, critic/velocity 1.25"


def test_each_run_of_a_measurement_is_a_line(capsys):
    now = [0.0]
    progress = PlainProgress(lambda: now[0])
    for done in range(4):
        progress.event(Event(kind="measured", text=f"run {done}", done=done, total=3))
        now[0] += 2.0
    said = capsys.readouterr().out.splitlines()
    assert said == ["[0/3] run 0", "[1/3] 33%, 0:04 left: run 1", "[2/3] 66%, 0:02 left: run 2", "[3/3] run 3"]


def test_the_bar_begins_with_count_and_share_and_fits_40_columns():
    bar = BarProgress("training digits")
    shown = io.StringIO()
    bar.step(123, 2000, METRICS)
    Console(file=shown, width=40).print(bar.progress.get_renderable())
    (line,) = shown.getvalue().splitlines()
    assert line.split()[:2] == ["123/2000", "6%"] and len(line) <= 40
