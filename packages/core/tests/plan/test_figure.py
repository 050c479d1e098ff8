"""The figure of predicted against measured."""

from __future__ import annotations

import pytest
from fewstep.bench.provenance import Provenance
from fewstep.bench.rows import Row
from fewstep.errors import FewstepError
from fewstep.plan import figure
from fewstep.plan.check import Pair, median_error
from fewstep.roofline import Ceiling, Cost, Machine, Measured, Operation, Phase, Plan, Workload

RUN = Provenance(
    id="r1", weights="random", device="a CPU", hardware="cpu", dtype="float32", threads=2, versions={}, commit="",
    date="2026-01-01", command="x",
)  # fmt: skip


def machines(dtype: str, threads: int) -> Machine:
    return Machine(name="unit", ceilings={"matmul": Ceiling(flops=1.0, bandwidth=1.0)}, launch=0.0, memory=1.0)


def pair(method: str, predicted: float, value: float) -> Pair:
    before, after = (
        Cost(phases=(Phase(name="walk", operations=(Operation(flops=flops),)),), memory={})
        for flops in (predicted, 1.0)
    )
    row = Row(task="walk", model="m", method=method, metric="walk_speedup", value=value, unit="x", run=RUN)
    return Pair(row, Plan(before=before, after=after), Measured(work=Workload(), phases={"walk": "walk"}), None)


def test_figures_are_written_and_repeat(tmp_path):
    found = [pair("skip", 2.0, 2.5), pair("skip", 8.0, 8.0), pair("jump", 30.0, 20.0)]
    assert median_error(found, machines) == pytest.approx(0.2)
    for name in ("a.svg", "b.svg", "deep/c.png"):
        figure.write(found, machines, tmp_path / name)
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "skip" in drawn and "jump" in drawn and drawn == (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert (tmp_path / "deep/c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FewstepError, match="figures are .svg or .png"):
        figure.write(found, machines, tmp_path / "d.pdf")
