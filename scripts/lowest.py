"""Install core and one package of the workspace with the lowest version of each dependency that they declare.

Usage: python scripts/lowest.py PACKAGE          into the environment of this Python
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BOUND = re.compile(r"([\w-]+)(?:\[[^\]]*\])?\s*>=\s*([\w.]+)")


def requirements(package: str, *, extras: bool) -> list[str]:
    """Lines of a package's dependencies, with those of its extras, but for our own packages."""
    project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *sum(project.get("optional-dependencies", {}).values() if extras else (), [])]
    return [line for line in lines if not line.startswith("fewstep-")]


def lower_bounds(lines: list[str]) -> dict[str, str]:
    """The highest lower bound of each dependency.

    Raises:
        ValueError: a dependency has no lower bound.
    """
    bounds: dict[str, str] = {}
    for line in lines:
        if not (match := BOUND.match(line)):
            raise ValueError(f"{line!r} has no lower bound: write name>=version")
        name, version = match.groups()
        bounds[name] = max(version, bounds.get(name, "0"), key=release)
    return bounds


def release(version: str) -> tuple[int, ...]:
    """Numbers of a version, to compare them: (0, 42) of ``0.42``."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def install(package: str) -> int:
    """Install core (with its extras where it is the package), the package and what tests need; pip's exit code."""
    alone = package == "core"
    bounds = lower_bounds(requirements("core", extras=alone) + requirements(package, extras=True))
    print("lowest:", *(f"{name}=={version}" for name, version in sorted(bounds.items())))
    folders = ["packages/core[bench,train,video]"] if alone else ["packages/core", f"packages/{package}"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("".join(f"{name}=={version}\n" for name, version in bounds.items()))
        constraints.flush()
        editable = [word for folder in folders for word in ("--editable", folder)]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", constraints.name, *editable]
        return subprocess.run([*command, "--group", "tools"], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(install(sys.argv[1]) if len(sys.argv) == 2 else __doc__)
