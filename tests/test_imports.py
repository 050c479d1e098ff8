"""`scripts/imports.py`: a circle of imports is found, however its modules import each other."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "imports.py"
FIRST = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .second import late\n"
FILES = {
    "__init__.py": "",
    "first.py": FIRST,
    "second.py": "def late():\n    from .inner import third\n",
    "inner/__init__.py": "",
    "inner/third.py": "from .. import first\n",
    "above.py": "from . import first, below\n",
    "below.py": "",
}


@pytest.fixture(scope="module")
def imports() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fewstep_scripts_imports", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that Python finds, in which a type-only, a late and a plain import make a circle of three modules."""
    for name, text in FILES.items():
        path = tmp_path / "planted_circle" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "planted_circle"


def test_a_circle_is_found_and_its_neighbours_are_not_in_it(imports: ModuleType, planted: Path):
    members = [f"planted_circle.{name}" for name in ("first", "inner.third", "second")]
    assert imports.circles(["planted_circle"]) == [members]


def test_two_modules_that_import_each_other_are_a_circle(imports: ModuleType, planted: Path):
    (planted / "inner/third.py").write_text("")
    (planted / "below.py").write_text("def late():\n    import planted_circle.above\n")
    assert imports.circles(["planted_circle"]) == [["planted_circle.above", "planted_circle.below"]]


def test_without_a_circle_there_is_none(imports: ModuleType, planted: Path):
    (planted / "inner/third.py").write_text("")
    assert imports.circles(["planted_circle"]) == []
