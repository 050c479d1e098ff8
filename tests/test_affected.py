"""`scripts/affected.py` in a real repository of five small packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "affected.py"
NEEDS = {
    "core": "",
    "zoo": '"fewstep-core>=0.1,<0.2"',
    "sgmd": '"fewstep-core>=0.1", "torch>=2"',
    "salt": '"fewstep-core", "fewstep-sgmd >=0.1"',
}


def git(folder: Path, *args: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *args], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, needs in NEEDS.items():
        folder = tmp_path / "packages" / name
        (folder / "src").mkdir(parents=True)
        (folder / "src" / "code.py").write_text("")
        (folder / "pyproject.toml").write_text(f'[project]\nname = "fewstep-{name}"\ndependencies = [{needs}]\n')
    lite = tmp_path / "packages" / "lite"
    lite.mkdir()
    (lite / "pyproject.toml").write_text(
        '[project]\nname = "fewstep-lite"\n[project.optional-dependencies]\nall = ["fewstep-zoo[x]"]\n'
    )
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "affected.py").write_bytes(SCRIPT.read_bytes())
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "start")
    return tmp_path


def run(repository: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/affected.py", *args]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True)


def affected(repository: Path, *files: str) -> list[str]:
    git(repository, "switch", "-q", "-c", "change", "main")
    for file in files:
        path = repository / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("changed")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "change")
    return json.loads(run(repository, "main").stdout)


EVERYTHING = ["core", "lite", "salt", "sgmd", "zoo"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["packages/salt/src/code.py"], ["salt"]),
        (["packages/sgmd/tests/test_new.py"], ["salt", "sgmd"]),
        (["packages/zoo/src/code.py"], ["lite", "zoo"]),
        (["packages/zoo/src/a b.py", "packages/salt/src/ü.py"], ["lite", "salt", "zoo"]),
        (["packages/core/src/code.py"], ["core", "salt", "sgmd", "zoo", "lite"]),
        (["hatch.toml"], EVERYTHING),
        (["scripts/new.py", "packages/salt/src/code.py"], EVERYTHING),
        ([".github/workflows/ci.yml"], EVERYTHING),
        (["README.md", "packages/core/README.md", "results/needle.jsonl", "docs/a.png"], []),
    ],
)
def test_a_change_affects_its_package_and_the_dependants(repository: Path, files: list[str], expected: list[str]):
    assert affected(repository, *files) == sorted(expected)


def test_what_main_did_meanwhile_does_not_count(repository: Path):
    git(repository, "branch", "old")
    (repository / "hatch.toml").write_text("")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "main moves on")
    git(repository, "switch", "-q", "old")
    (repository / "packages" / "salt" / "src" / "code.py").write_text("changed")
    git(repository, "commit", "-q", "-a", "-m", "change")
    assert json.loads(run(repository, "main").stdout) == ["salt"]


def test_a_deleted_package_is_not_tested(repository: Path):
    git(repository, "switch", "-q", "-c", "change")
    git(repository, "rm", "-q", "-r", "packages/salt")
    git(repository, "commit", "-q", "-m", "change")
    assert json.loads(run(repository, "main").stdout) == []


def test_an_unknown_base_is_one_line(repository: Path):
    result = run(repository, "nowhere")
    assert result.returncode == 1
    assert "nowhere" in result.stderr and len(result.stderr.splitlines()) == 1


def test_without_a_base_everything_is_affected(repository: Path):
    assert json.loads(run(repository).stdout) == EVERYTHING
