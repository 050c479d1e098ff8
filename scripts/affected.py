"""Which packages a change affects, as a JSON list for the matrix of the continuous integration.

Usage: python scripts/affected.py [BASE]          without BASE: every package
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

DOCS = (".md", ".png", ".svg")
"""No package behaves differently for these; the tests of the whole workspace read them, and always run."""


def packages(root: Path) -> dict[str, set[str]]:
    """Every package folder with the folders of the workspace packages that it depends on, its extras included."""
    projects = {p.parent.name: tomllib.loads(p.read_text())["project"] for p in root.glob("packages/*/pyproject.toml")}
    folders = {project["name"]: folder for folder, project in projects.items()}
    wanted = {folder: _requirements(project) for folder, project in projects.items()}
    return {folder: {folders[name] for name in names if name in folders} for folder, names in wanted.items()}


def _requirements(project: dict) -> set[str]:
    lines = [*project.get("dependencies", ()), *sum(project.get("optional-dependencies", {}).values(), [])]
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in lines}


def affected(files: Iterable[str], graph: dict[str, set[str]]) -> list[str]:
    """The packages to test: those of `files` and all that depend on them; every one where a shared file changed."""
    found: set[str] = set()
    for file in files:
        if file.endswith(DOCS) or file.startswith("results/"):
            continue
        match file.split("/"):
            case ["packages", folder, _, *_]:
                found |= {folder} & graph.keys()  # a folder that was deleted has nothing to test
            case _:
                return sorted(graph)
    while more := {folder for folder, needs in graph.items() if needs & found} - found:
        found |= more
    return sorted(found)


def changed(root: Path, base: str) -> list[str]:
    """Files that differ between `base` and HEAD, seen from where they forked.

    Raises:
        subprocess.CalledProcessError: git knows no such `base`.
    """
    command = ["git", "diff", "--name-only", "--no-renames", "-z", f"{base}...HEAD"]
    output = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return [line for line in output.split("\0") if line]


def main() -> None:
    root = Path(__file__).resolve().parents[1]
    graph = packages(root)
    match sys.argv[1:]:
        case []:
            print(json.dumps(sorted(graph)))
        case [base]:
            try:
                print(json.dumps(affected(changed(root, base), graph)))
            except subprocess.CalledProcessError as error:
                sys.exit(f"git cannot compare with {base!r}: {error.stderr.strip().splitlines()[0]}")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
