"""The workspace as a whole: every plug-in loads, and no package forgets what all of them have."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from fewstep.bench.readme import check_readme

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
PLUGINS = [path for path in PACKAGES if path.name != "core"]
each_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
each_plugin = pytest.mark.parametrize("package", [*PLUGINS, ROOT / "scripts" / "template"], ids=lambda path: path.name)


def project(package: Path) -> dict[str, Any]:
    return tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def python(code: str) -> str:
    """What `code` prints in a fresh interpreter that sees the plug-ins of this repository only."""
    env = {**os.environ, "FEWSTEP_PLUGINS": ",".join(path.name for path in PLUGINS)}
    return subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout


def test_every_plug_in_loads_and_every_card_has_its_target():
    names = python(
        "from fewstep import plugins\n"
        "hooks = [plugins.methods, plugins.recipes, plugins.loaders, plugins.tasks, plugins.kernels]\n"
        "targets = [card.load() for hook in hooks for card in hook().values()]\n"
        "assert targets and not plugins.installed().broken, plugins.installed().broken\n"
        "print(*sorted(plugins.installed().distributions))"
    )
    assert names.split() == sorted(path.name for path in PACKAGES)


def test_cards_and_discovery_leave_torch_unimported():
    modules = python(
        "import sys, importlib\n"
        "from fewstep import cards, plugins\n"
        "cards = [hook() for hook in (plugins.methods, plugins.loaders, plugins.tasks, plugins.kernels)]\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    ).split()
    assert "fewstep" in modules
    assert not {"torch", "transformers", "diffusers", "numpy", "huggingface_hub"} & set(modules)


@each_package
def test_a_package_has_a_readme_a_marker_for_types_and_its_names(package: Path):
    about = project(package)
    short = package.name
    module = "fewstep" if short == "core" else f"fewstep_{short.replace('-', '_')}"
    assert about["name"] == f"fewstep-{short}"
    assert about["entry-points"]["fewstep"] == {short: f"{module}.plugin"}
    assert (package / "src" / module / "py.typed").is_file()
    assert (package / "README.md").read_text(encoding="utf-8").startswith(f"# {about['name']}\n")
    assert any(package.glob("tests/test_*.py"))
    assert (
        about["license"] == "Apache-2.0"
        and about["requires-python"] == project(ROOT / "packages/core")["requires-python"]
    )


@each_package
def test_the_version_is_the_newest_entry_of_the_changelog(package: Path):
    entries = re.findall(r"^## (\S+)", (package / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert entries[0] == project(package)["version"]


@each_plugin
def test_a_plug_in_asks_for_this_minor_version_of_core(package: Path):
    major, minor, _ = map(int, project(ROOT / "packages/core")["version"].split("."))
    assert f"fewstep-core>={major}.{minor},<{major}.{minor + 1}" in project(package)["dependencies"]


def test_every_package_is_tested_alone_and_with_the_lowest_versions():
    envs = tomllib.loads((ROOT / "hatch.toml").read_text(encoding="utf-8"))["envs"]
    assert envs["alone"]["matrix"] == [{"package": [path.name for path in PLUGINS]}]
    assert envs["lowest"]["matrix"] == [{"package": [path.name for path in PACKAGES]}]


def test_no_file_holds_a_path_of_one_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    machine = re.compile(rb"(?<![\w.~}])/(?:work|root|home|opt|tmp|Users)/\w")
    found = []
    for name in listed.split("\0"):
        path = ROOT / name
        if path.is_file() and (match := machine.search(path.read_bytes())):
            found.append(f"{name}: {match[0].decode()}")
    assert not found


def test_the_table_in_the_readme_shows_the_committed_rows():
    assert check_readme(ROOT / "README.md", ROOT / "results"), "run `fewstep report results --readme README.md`"


def remote_code_is_refused(call: ast.Call) -> bool:
    words = {keyword.arg: keyword.value for keyword in call.keywords}
    if None in words and "trust_remote_code" not in words:  # **source: the mapping must say so beside it
        return True
    value = words.get("trust_remote_code")
    return isinstance(value, ast.Constant) and value.value is False


def test_every_loading_call_refuses_code_of_a_checkpoint():
    """Classes that are looked up (``Auto*``, pipelines) could run it; transformers asks on stdin unless told."""
    wrong, calls = [], 0
    for file in sorted(
        [*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("benchmarks/*.py")]
    ):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            owner = ast.unparse(call.func.value)
            looked_up = "Auto" in owner.rpartition(".")[2][:4] or owner.endswith("DiffusionPipeline")
            if call.func.attr in ("from_pretrained", "from_config") and looked_up and "AutoencoderKL" not in owner:
                calls += 1
                wrong += [] if remote_code_is_refused(call) else [f"{file.relative_to(ROOT)}:{call.lineno}"]
    assert calls >= 6 and not wrong
