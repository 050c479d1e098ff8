"""Rows on disk: provenance stands once, old lines load, damage costs a line and no more, replaced rows are archived."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fewstep import BadFileError
from fewstep.bench import Row, Sample
from fewstep.bench.archive import archive
from fewstep.bench.provenance import Provenance
from fewstep.bench.rows import append, read
from fewstep.bench.samples import read_samples, write_samples

OLD = (  # a line of this repository, as rows were stored before their runs had a file
    '{"task": "needle", "model": "smollm2-135m", "method": "slim-infer", "metric": "accuracy", '
    '"value": 0.7083333333333333, "unit": "", "run": "28d947340b2d", "weights": "pretrained", '
    '"device": "AMD EPYC", "dtype": "bfloat16", "threads": 2, "versions": {"python": "3.11.7", '
    '"fewstep-core": "0.1.0", "fewstep-sgmd": "0.1.0", "fewstep-slim-infer": "0.1.0", "fewstep-zoo": "0.1.0", '
    '"torch": "2.13.0+cpu", "transformers": "5.23.0", "diffusers": "0.42.1"}, '
    '"commit": "56d54b4645a3c96d1875d37c5af5f71276e95d72", "date": "2026-11-23T18:05:01+00:00", '
    '"command": "fewstep bench slim-infer --model smollm2-135m --threads 2 --task needle '
    '--length 4096 --repeats 2 --seed 100 --dtype bfloat16", '
    '"config": {}, "spread": [0.6666666666666666, 0.75], "baseline": null, "params": {"length": 4096, '
    '"needles": 12, "text": "python-docs", "seed": 100, "repeats": 2}, "superseded": false}'
)


def run(name: str = "r1", **other) -> Provenance:
    fields = {
        "weights": "trained", "device": "a cpu", "hardware": "cpu", "dtype": "float32", "threads": 2,
        "versions": {"torch": "2.13.0"}, "commit": "abc1234", "date": "2026-01-02T03:04:05+00:00", "command": "c",
    }  # fmt: skip
    return Provenance(id=name, **{**fields, **other})


def row(method: str = "dense", value: float = 1.0, **other) -> Row:
    fields = {"task": "walk", "model": "net", "metric": "wait", "unit": "s", "run": run(), "params": {"length": 8}}
    return Row(method=method, value=value, **{**fields, **other})


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_provenance_is_stored_once_and_joined_on_reading(tmp_path):
    rows = [row(), row("skip", spread=(0.5, 1.5), config={"keep": 0.5}), row("skip", 2.0, baseline="dense", unit="x")]
    append(rows[:2], tmp_path / "walk.jsonl")
    append(rows[2:], tmp_path / "walk.jsonl")
    append([row(task="run", run=run("r2"))], tmp_path / "run.jsonl")
    assert [line["id"] for line in lines(tmp_path / "runs.jsonl")] == ["r1", "r2"]
    assert all(line["run"] == "r1" and "versions" not in line for line in lines(tmp_path / "walk.jsonl"))
    assert read(tmp_path / "walk.jsonl") == rows and read(tmp_path) == [row(task="run", run=run("r2")), *rows]


def test_a_line_of_the_old_format_loads_beside_new_ones(tmp_path):
    append([row()], tmp_path / "needle.jsonl")
    with open(tmp_path / "needle.jsonl", "a") as file:
        file.write(OLD + "\n")
    new, old = read(tmp_path)
    assert new == row() and (old.metric, old.value, old.spread) == ("accuracy", 0.7083333333333333, (2 / 3, 0.75))
    assert old.params["length"] == 4096 and not old.superseded
    assert (old.run.id, old.run.hardware, old.run.dtype, old.run.dirty) == ("28d947340b2d", "cpu", "bfloat16", False)


SPREAD = '{"run": "r1", "value": 1.0, "spread": [1.0]}'


@pytest.mark.parametrize(
    "damaged",
    ['{"task": "wal', '{"value": "fast"}', "3", '{"run": "r9", "value": 1.0}', '{"run": "r1"}', "\udcff", SPREAD],
)
def test_a_damaged_line_is_skipped_and_named(tmp_path, damaged):
    append([row()], path := tmp_path / "walk.jsonl")
    with open(path, "a", errors="surrogateescape") as file:
        file.write(damaged + "\n")
    append([row("skip")], path)
    with pytest.warns(UserWarning, match=r"walk\.jsonl:2 is damaged and skipped"):
        assert read(path) == [row(), row("skip")]


def test_a_run_whose_date_is_none_is_damaged(tmp_path):
    with pytest.raises(ValueError, match="date of run r1 is not ISO 8601: 'yesterday'"):
        run(date="yesterday")
    append([row()], tmp_path / "walk.jsonl")
    (tmp_path / "runs.jsonl").write_text((tmp_path / "runs.jsonl").read_text().replace("2026-", "20x6-"))
    with pytest.warns(UserWarning) as said:
        assert read(tmp_path) == []
    assert ["runs.jsonl:1" in str(said[0].message), "walk.jsonl:1" in str(said[1].message)] == [True, True]


@pytest.mark.parametrize("name", ["walk.jsonl", "runs.jsonl"])
def test_a_line_end_that_a_killed_writer_left_out_is_put_in(tmp_path, name):
    append([row()], tmp_path / "walk.jsonl")
    path = tmp_path / name
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    append([row("skip", run=run("r2"))], tmp_path / "walk.jsonl")
    assert read(tmp_path) == [row(), row("skip", run=run("r2"))]


def test_half_a_line_of_a_killed_writer_costs_no_later_row(tmp_path):
    append([row(), row("lost")], path := tmp_path / "walk.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    append([row("skip")], path)
    with pytest.warns(UserWarning, match="walk.jsonl:2"):
        assert read(path) == [row(), row("skip")]


def test_replaced_rows_move_to_the_archive(tmp_path):
    later = run("r2", date="2026-01-03T00:00:00+00:00")
    kept = [row(), row("slow")]  # the dense row of the run of `slow`, which was not measured again
    replaced = [row("skip"), row("skip", 2.0, superseded=True)]
    newer = [row(run=later), row("skip", run=later)]
    append([*kept, *replaced, *newer], tmp_path / "walk.jsonl")
    (tmp_path / "needle.jsonl").write_text(OLD + "\n" + OLD.replace("false}", "true}") + "\n")
    assert archive(tmp_path) == 3
    assert read(tmp_path / "walk.jsonl") == kept + newer
    assert read(tmp_path / "archive/walk.jsonl") == [replace(one, superseded=True) for one in replaced]
    assert [one.superseded for one in read(tmp_path / "needle.jsonl")] == [False]
    assert "device" not in lines(tmp_path / "needle.jsonl")[0] and "device" not in lines(tmp_path / "walk.jsonl")[0]
    assert {line["id"] for line in lines(tmp_path / "runs.jsonl")} == {"r1", "r2", "28d947340b2d"}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    assert archive(tmp_path) == 0 and {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == before


def test_nothing_is_archived_from_a_file_with_a_damaged_line(tmp_path):
    append([row(superseded=True)], path := tmp_path / "walk.jsonl")
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(BadFileError, match=r"would be lost: .*walk\.jsonl:2"):
        archive(tmp_path)
    assert path.read_text().endswith("{\n") and not (tmp_path / "archive").exists()


def test_samples_are_found_by_an_index_and_go_with_their_run(tmp_path):
    folder, head = tmp_path / "samples", {"task": "walk", "model": "net", "params": {}}
    samples = {"dense": (Sample(title="a", text="b"), Sample(title="c", image=b"GIF89a")), "skip": ()}
    for name in ("r1", "r2"):
        write_samples(folder, name, head, samples)
    entry = {"task": "walk", "model": "net"}
    index = json.loads((folder / "index.json").read_text())
    assert index == {name: {**entry, "files": [f"{name}.json", f"{name}/0-1.gif"]} for name in ("r1", "r2")}
    (grid,) = read_samples(folder, ["r1", "r3"], "walk", "net")
    assert grid.arms == ("dense", "skip") and [title for title, _ in grid.lines] == ["a", "c"]
    assert read_samples(folder, ["r1"], "walk", "other") == []
    (folder / "index.json").unlink()  # results of an earlier version have none
    assert read_samples(folder, ["r1"], "walk", "net") == [grid]
    append([row(run=run("r2"))], tmp_path / "walk.jsonl")
    archive(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "r2", "r2.json"]
    assert list(json.loads((folder / "index.json").read_text())) == ["r2"]
