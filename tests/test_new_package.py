"""`scripts/new_package.py` in an empty workspace: what it writes works at once."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "hatch.toml").write_bytes((ROOT / "hatch.toml").read_bytes())
    return tmp_path


def new_package(name: str, root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "new_package.py"), name, "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True)


def matrix(root: Path, env: str = "alone") -> list[str]:
    config = tomllib.loads((root / "hatch.toml").read_text())
    return config["envs"][env]["matrix"][0]["package"]


def as_installed(package: Path) -> dict[str, str]:
    """The environment in which Python sees `package` as pip would install it; pip itself would ask the network."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    [(entry, value)] = project["entry-points"]["fewstep"].items()
    info = package / "src" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text(f"[fewstep]\n{entry} = {value}\n")
    path = os.pathsep.join((str(package / "src"), os.environ.get("PYTHONPATH", "")))
    return {**os.environ, "PYTHONPATH": path, "FEWSTEP_PLUGINS": entry}


def test_the_new_package_passes_its_conformance_tests(workspace: Path):
    run = new_package("few-bits", workspace)
    assert run.returncode == 0, run.stderr
    package = workspace / "packages" / "few-bits"
    names = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert names == {
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "src/fewstep_few_bits/__init__.py",
        "src/fewstep_few_bits/plugin.py",
        "src/fewstep_few_bits/method.py",
        "src/fewstep_few_bits/py.typed",
        "tests/test_conformance.py",
    }
    command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", str(package)]
    tests = subprocess.run(command, cwd=workspace, env=as_installed(package), capture_output=True, text=True)
    assert tests.returncode == 0, tests.stdout
    assert "skipped" not in tests.stdout


def test_nothing_of_the_template_is_left(workspace: Path):
    assert new_package("few-bits", workspace).returncode == 0
    for path in (workspace / "packages").rglob("*"):
        text = path.name + (path.read_text() if path.is_file() else "")
        assert not any(word in text for word in ("new-name", "new_name", "NewName")), path


def test_it_joins_the_matrix_of_packages_that_are_tested_alone(workspace: Path):
    before = matrix(workspace)
    assert new_package("few-bits", workspace).returncode == 0
    assert matrix(workspace) == sorted([*before, "few-bits"])
    assert matrix(workspace, "lowest") == sorted(["core", *before, "few-bits"])


@pytest.mark.parametrize("name", ["Foo", "foo_bar", "foo--bar", "foo-", "1foo", "foo/bar", "..", ""])
def test_an_impossible_name_writes_nothing(workspace: Path, name: str):
    run = new_package(name, workspace)
    assert run.returncode == 1 and len(run.stderr.splitlines()) == 1
    assert "lowercase" in run.stderr
    assert not (workspace / "packages").exists()


def test_an_existing_package_is_refused(workspace: Path):
    mine = workspace / "packages" / "foo" / "mine.py"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    run = new_package("foo", workspace)
    assert run.returncode == 1 and "exists already" in run.stderr
    assert [path.name for path in mine.parent.iterdir()] == ["mine.py"]
    assert "foo" not in matrix(workspace)


def test_a_folder_that_is_no_workspace_is_refused(tmp_path: Path):
    run = new_package("foo", tmp_path)
    assert run.returncode == 1 and "is this the workspace?" in run.stderr
    assert not any(tmp_path.iterdir())
