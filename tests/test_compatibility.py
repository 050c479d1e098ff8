"""Methods, students and rows that were written by earlier versions still load; ``written_before`` holds one of each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fewstep import Method, plugins
from fewstep.bench.rows import read

WRITTEN = Path(__file__).with_name("written_before")
METHODS = sorted(WRITTEN.glob("*.json"))


@pytest.mark.parametrize("file", METHODS, ids=lambda file: file.stem)
def test_a_saved_method_loads_with_the_values_that_it_had(file: Path, tmp_path: Path):
    shutil.copy(file, tmp_path / "fewstep.json")
    written = json.loads(file.read_text(encoding="utf-8"))
    for name in written.get("files", {}).values():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"weights are read when the method is applied")
    method = Method.from_pretrained(tmp_path)
    assert method.name == written["method"]
    values = json.loads(json.dumps(list(vars(method).values()), default=str))
    for name, value in written["fields"].items():
        assert value in values, f"{name}={value} is lost"


def test_students_that_come_with_models_load():
    saved = {(model, name) for model, card in plugins.loaders().items() for name in card.saved}
    assert {name for _, name in saved} >= {"sgmd", "flash-vaed", "modes"}
    for model, name in saved:
        assert plugins.methods()[name].load().from_pretrained(model).name == name


def test_rows_of_earlier_versions_load():
    rows = read(WRITTEN / "rows.jsonl")
    assert len(rows) == 3 and {row.task for row in rows} == {"needle"}
    assert all(row.device and row.versions and row.commit and row.command for row in rows)
