"""`scripts/lowest.py`: the bounds that it installs are those that the packages declare."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def lowest() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fewstep_scripts_lowest", ROOT / "scripts" / "lowest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_highest_of_two_bounds_holds(lowest: ModuleType):
    lines = ["torch>=2.9", "diffusers >= 0.9,<1", "diffusers>=0.42", "imageio[ffmpeg]>=2.37"]
    assert lowest.lower_bounds(lines) == {"torch": "2.9", "diffusers": "0.42", "imageio": "2.37"}


@pytest.mark.parametrize("line", ["torch", "torch<3", "torch==2.9", "torch!=2.9,>=2.8"])
def test_a_dependency_without_a_lower_bound_is_named(lowest: ModuleType, line: str):
    with pytest.raises(ValueError, match="write name>=version"):
        lowest.lower_bounds(["rich>=13", line])


@pytest.mark.parametrize("package", [path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")])
def test_every_dependency_of_a_package_has_a_lower_bound(lowest: ModuleType, package: str):
    bounds = lowest.lower_bounds(lowest.requirements(package, extras=True))
    assert bounds and not any(name.startswith("fewstep") for name in bounds)
