"""The paired benchmark in this process: order, inputs, arithmetic of the rows, memory, gate, provenance."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from fewstep import Applied, FewstepError, Loaded, Method
from fewstep.bench import gate, timing
from fewstep.bench.provenance import commit
from fewstep.bench.rows import read
from fewstep.bench.run import bench
from fewstep.bench.settings import Event, Settings
from fewstep.bench.task import Outcome, Sample
from torch import nn


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.factor = 1.0

    def forward(self, x):
        return x * self.weight * self.factor


@dataclass(frozen=True, kw_only=True)
class Double(Method):
    """Multiply by a factor."""

    name: ClassVar[str] = "double"
    seams: ClassVar[frozenset[str]] = frozenset({"factor"})
    factor: float = 2.0
    where: Path | None = None
    sizes: tuple[int, ...] = (1, 2)

    def apply(self, model):
        with Applied() as undo:
            undo.occupy(model, self)
            undo.set(model, "factor", self.factor)
            return undo.pop_all()

    def identity(self):
        return Double(factor=1.0)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A task whose seconds are those of `takes`, by factor and seed; keeps a log of its runs."""

    length: int = 4
    takes: dict[float, list[float]] = field(default_factory=lambda: {1.0: [1.0] * 9, 2.0: [0.5] * 9, 3.0: [0.25] * 9})
    evident: bool = True
    quality: float = 1.0
    interrupt: int = -1
    picture: str | None = None
    image: bytes | None = None
    small_one: bool = False
    log: list = field(default_factory=list, compare=False, repr=False)

    def run(self, loaded, generator):
        seed = generator.initial_seed()
        x, sampled = torch.randn(self.length, generator=generator), torch.rand(()).item()
        y = loaded.model(x).detach()
        if not self.small_one:
            self.log.append((loaded.model.factor, seed, x[0].item(), sampled))
            if seed == self.interrupt and loaded.model.factor == 3.0:
                raise KeyboardInterrupt
        return Outcome(
            seconds={"wait": self.takes[loaded.model.factor][seed]},
            quality={"accuracy": self.quality},
            counts={"kv_bytes": 12.0, "tokens": 3.0},
            evidence=y if self.evident else None,
            samples=(
                Sample(title="x", text=str(seed)),
                *([Sample(title="p", file=self.picture)] * bool(self.picture)),
                *([Sample(title="i", image=self.image)] * bool(self.image)),
            ),
        )

    def compare(self, outcome, baseline):
        return {"gap": (outcome.evidence - baseline.evidence).abs().max().item()} if self.evident else {}

    def small(self):
        return replace(self, small_one=True)


def loaded(weights="trained"):
    return Loaded(model=Scale().eval(), name="scale", weights=weights)


def measure(tmp_path, arms, task, *, weights="trained", **settings):
    events: list[Event] = []
    options = Settings(results=tmp_path / "results", threads=1, allow_dirty=True, **settings)
    return bench(loaded(weights), arms, task, "timed", options, events.append), events


def by_metric(rows, method):
    return {row.metric: row for row in rows if row.method == method}


def test_arms_alternate_on_the_same_inputs_that_differ_between_repeats(tmp_path):
    task, state = Timed(), torch.random.get_rng_state()
    measure(tmp_path, {"a": Double(), "b": Double(factor=3.0)}, task, repeats=2, seed=4)
    assert [(factor, seed) for factor, seed, *_ in task.log] == [(f, s) for s in (4, 5) for f in (1.0, 2.0, 3.0)]
    first, second = {entry[2:] for entry in task.log[:3]}, {entry[2:] for entry in task.log[3:]}
    assert len(first) == len(second) == 1 and first != second
    assert torch.equal(torch.random.get_rng_state(), state)


def test_rows_hold_medians_spreads_and_pairwise_ratios(tmp_path):
    takes = {1.0: [1.0, 4.0, 2.0], 2.0: [0.5, 1.0, 2.0]}  # ratios 2, 4, 1: their median is not the ratio of medians
    rows, _ = measure(tmp_path, {"double": Double(sizes=(3,))}, Timed(takes=takes), repeats=3)
    dense, double = by_metric(rows, "dense"), by_metric(rows, "double")
    assert (dense["wait"].value, dense["wait"].spread, dense["wait"].unit) == (2.0, (1.0, 4.0), "s")
    ratio = double["wait_speedup"]
    assert (ratio.value, ratio.spread, ratio.unit, ratio.baseline) == (2.0, (1.0, 4.0), "x", "dense-eager-float32")
    assert "wait_speedup" not in dense and dense["wait"].baseline is None and double["wait"].baseline is None
    assert (double["kv_bytes"].unit, double["tokens"].unit, double["accuracy"].unit) == ("B", "", "")
    assert double["peak_rss_bytes"].value > 1e6 and double["peak_rss_bytes"].unit == "B"
    assert double["gap"].value > 0 and "gap" not in dense
    assert double["wait"].config == {"sizes": [3]} and dense["wait"].config == {}
    assert double["wait"].params["length"] == 4 and double["wait"].params["repeats"] == 3
    (run,) = {row.run for row in rows}
    assert run.versions["torch"] == torch.__version__ and (run.hardware, run.weights) == ("cpu", "trained")
    assert read(tmp_path / "results") == rows


def test_one_repeat_has_no_spread_and_runs_are_appended(tmp_path):
    first, _ = measure(tmp_path, {"double": Double()}, Timed(), repeats=1)
    second, _ = measure(tmp_path, {"double": Double()}, Timed(), repeats=1)
    assert all(row.spread is None for row in first)
    assert read(tmp_path / "results/timed.jsonl") == first + second


def test_the_model_and_the_threads_are_as_before(tmp_path):
    before, model = torch.get_num_threads(), loaded()
    torch.set_num_threads(2)
    try:
        settings = Settings(results=tmp_path, threads=1, repeats=1, allow_dirty=True)
        bench(model, {"double": Double()}, Timed(), "timed", settings)
        assert torch.get_num_threads() == 2 and model.model.factor == 1.0
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("identity", "evident", "said"),
    [(Double(factor=2.0), True, "differs by up to"), (Double(factor=1.0), False, "no evidence")],
)
def test_a_red_gate_keeps_times_and_refuses_ratios(tmp_path, monkeypatch, identity, evident, said):
    monkeypatch.setattr(Double, "identity", lambda self: identity)
    rows, events = measure(tmp_path, {"double": Double()}, Timed(evident=evident), repeats=2)
    assert by_metric(rows, "double").keys() >= {"wait", "accuracy"} and all(row.baseline is None for row in rows)
    (red,) = [event for event in events if event.kind == "gate"]
    assert not red.ok and said in red.text
    assert not any("x" in event.text.rpartition(" s")[2] for event in events if event.kind == "measured")


def test_a_method_without_identity_has_no_gate(tmp_path, monkeypatch):
    monkeypatch.setattr(Double, "identity", lambda self: None)
    rows, events = measure(tmp_path, {"double": Double()}, Timed(), repeats=1)
    assert "wait_speedup" in by_metric(rows, "double") and not [event for event in events if event.kind == "gate"]
    assert events[-1].done == events[-1].total


@pytest.mark.parametrize(
    ("dtype", "by", "equal"),
    [("float32", 1e-5, True), ("float32", 1e-2, False), ("bfloat16", 1e-2, True), ("bfloat16", 0.5, False)],
)
def test_the_gate_allows_reordered_sums_only(dtype, by, equal):
    wanted = torch.linspace(-1, 1, 100)
    outcome, baseline = Outcome(seconds={}, evidence=wanted + by), Outcome(seconds={}, evidence=wanted)
    assert (gate.difference(outcome, baseline, dtype) is None) is equal


def test_the_gate_sees_shapes_and_nan():
    dense = Outcome(seconds={}, evidence=torch.ones(3))
    assert "(2,) instead of (3,)" in gate.difference(Outcome(seconds={}, evidence=torch.ones(2)), dense, "float32")
    assert gate.difference(Outcome(seconds={}, evidence=torch.tensor([1, 1, float("nan")])), dense, "float32")


def test_random_weights_have_no_quality(tmp_path):
    rows, events = measure(tmp_path, {"double": Double()}, Timed(), weights="random", repeats=1)
    assert not {"accuracy", "gap"} & {row.metric for row in rows}
    assert ["random weights" in event.text for event in events if event.kind == "note"] == [True]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Timed(quality=float("inf")), r"quality\['accuracy'\] is inf in timed, dense, repeat 1"),
        (Timed(takes={1.0: [1.0], 2.0: [0.0]}), r"seconds\['wait'\] is 0.0 in timed, double, repeat 1"),
    ],
)
def test_numbers_that_cannot_be_are_named(tmp_path, task, said):
    with pytest.raises(FewstepError, match=said):
        measure(tmp_path, {"double": Double()}, task, repeats=1)
    assert not (tmp_path / "results/timed.jsonl").exists()


def test_an_interrupt_keeps_finished_pairs_of_each_arm(tmp_path):
    arms = {"a": Double(), "b": Double(factor=3.0)}
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, arms, Timed(interrupt=1), repeats=3)
    rows = read(tmp_path / "results/timed.jsonl")
    two, one = [[row for row in rows if row.config == config] for config in ({}, {"factor": 3.0})]
    assert all(row.spread for row in two if row.method == "double") and all(row.spread is None for row in one)
    assert {row.params["repeats"] for row in rows} == {2}


def test_samples_are_written_with_their_files(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"png")
    rows, _ = measure(tmp_path, {"double": Double()}, Timed(picture=str(tmp_path / "cat.png")), repeats=2)
    folder = tmp_path / "results/samples"
    assert (folder / f"{rows[0].run.id}/1-1.png").read_bytes() == b"png"
    assert f'"file": "{rows[0].run.id}/1-1.png"' in (folder / f"{rows[0].run.id}.json").read_text()


@pytest.mark.parametrize(
    ("head", "suffix"), [(b"\x89PNG\r\n", "png"), (b"GIF89a", "gif"), (b"RIFF\x00\x00WEBP", "webp")]
)
def test_images_of_samples_are_written_as_files_of_their_kind(tmp_path, head, suffix):
    rows, _ = measure(tmp_path, {"double": Double()}, Timed(image=head + b"rest"), repeats=1)
    folder = tmp_path / "results/samples"
    assert (folder / f"{rows[0].run.id}/0-1.{suffix}").read_bytes() == head + b"rest"
    assert f'"file": "{rows[0].run.id}/0-1.{suffix}"' in (folder / f"{rows[0].run.id}.json").read_text()


def test_peak_memory_sees_what_is_freed_again():
    with timing.PeakMemory(torch.device("cpu")) as idle:
        pass
    with timing.PeakMemory(torch.device("cpu")) as peak:
        large = torch.ones(40_000_000)
        large.sum()
        timing_out = [torch.ones(1000).sum() for _ in range(2000)]
        del large
    assert timing_out and peak.value - idle.value > 100_000_000


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """The current directory: a checkout with one empty commit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    me = "-c", "user.name=me", "-c", "user.email=me@here"
    for words in (["init", "-q"], [*me, "commit", "-qm", "one", "--allow-empty"]):
        subprocess.run(["git", *words], check=True)
    return tmp_path


def test_the_commit_says_whether_files_differ(checkout):
    results = Path("results")
    clean = commit(results)
    assert len(clean) == 40
    results.mkdir()
    (results / "timed.jsonl").write_text("{}\n")
    assert commit(results) == clean
    (checkout / "code.py").write_text("1\n")
    assert commit(results) == clean + "+dirty"


def test_without_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit(Path("results")) == ""


def test_a_dirty_checkout_is_refused_before_anything_runs_unless_asked_for(checkout):
    (checkout / "code.py").write_text("1\n")
    task, settings = Timed(), Settings(results=Path("results"), threads=1, repeats=1)
    with pytest.raises(FewstepError, match="differ from commit .*: commit them first, or pass --allow-dirty"):
        bench(loaded(), {"double": Double()}, task, "timed", settings)
    assert task.log == [] and not Path("results").exists()
    rows = bench(loaded(), {"double": Double()}, task, "timed", replace(settings, allow_dirty=True))
    assert all(row.run.dirty for row in rows)
    (checkout / "code.py").unlink()
    rows = bench(loaded(), {"double": Double()}, task, "timed", settings)
    assert not any(row.run.dirty for row in rows)
