"""Write packages/NAME: a plug-in with a small working method that passes its conformance tests at once.

It is a copy of scripts/template, a real package, with its name changed.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TEMPLATE = Path(__file__).resolve().parent / "template"
MATRIX = re.compile(r'(?P<head>\[\[envs\.\w+\.matrix\]\]\npackage = \[\n)(?P<names>(?:  "[^"]+",\n)*)')


def create(name: str, root: Path) -> Path:
    """Write the package and add its name to the matrices of hatch.toml; nothing is written when this raises.

    Raises:
        ValueError: not a possible name, the folder exists, or `root` is no workspace.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ValueError(f"{name!r} is not a package name: use lowercase letters, digits and single hyphens")
    folder = root / "packages" / name
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose another name or delete it")
    matrix = with_name(root / "hatch.toml", name)
    words = {"new-name": name, "new_name": name.replace("-", "_"), "NewName": name.title().replace("-", "")}
    for source in sorted(TEMPLATE.rglob("*")):
        if source.is_file() and "__pycache__" not in source.parts:
            target = folder / renamed(source.relative_to(TEMPLATE).as_posix(), words)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(renamed(source.read_text(encoding="utf-8"), words), encoding="utf-8")
    (root / "hatch.toml").write_text(matrix, encoding="utf-8")
    return folder


def with_name(hatch: Path, name: str) -> str:
    """The text of hatch.toml with `name` in each matrix of packages: those tested alone and with lowest versions.

    Raises:
        ValueError: there is no such matrix.
    """

    def joined(matrix: re.Match[str]) -> str:
        return matrix["head"] + "".join(sorted({*matrix["names"].splitlines(keepends=True), f'  "{name}",\n'}))

    text, count = MATRIX.subn(joined, hatch.read_text(encoding="utf-8") if hatch.is_file() else "")
    if not count:
        raise ValueError(f"{hatch} has no [[envs.alone.matrix]] with one package a line: is this the workspace?")
    return text


def renamed(text: str, words: dict[str, str]) -> str:
    for old, new in words.items():
        text = text.replace(old, new)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="short name: lowercase letters, digits and hyphens, as in `fewstep show NAME`")
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="the workspace (default: this one)")
    args = parser.parse_args()
    try:
        folder = create(args.name, args.root)
    except (ValueError, OSError) as error:
        sys.exit(f"new_package.py: {error}")
    print(f"{folder} is ready: `hatch test {folder}` tests it; write your method in its method.py")


if __name__ == "__main__":
    main()
