"""Each package ships what was measured of its methods, and `fewstep show` prints it wherever one is."""

from __future__ import annotations

from pathlib import Path

import pytest
from fewstep.bench.measured import FILE, measured, text
from fewstep.bench.tables import load
from fewstep.testing.cli import run_command_line

ROOT = Path(__file__).parents[1]
TABLES = measured(load(ROOT / "results"))


@pytest.mark.parametrize("package", sorted(TABLES))
def test_the_table_that_a_package_ships_is_that_of_the_committed_rows(package):
    (root,) = ROOT.glob(f"packages/*/src/{package}")
    assert (root / FILE).read_text(encoding="utf-8") == text(TABLES[package]), "run `python scripts/measured.py`"


def test_show_prints_the_table_outside_of_a_checkout(tmp_path):
    shown = run_command_line(["show", "slim-infer"], tmp_path).stdout
    lines = TABLES["fewstep_slim_infer"]["slim-infer"]
    assert 1 <= len(lines) <= 8, "a short table"
    assert all(line[1] in shown and line[2] in shown for line in lines)
