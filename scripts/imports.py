"""Run import-linter: the contracts of core from pyproject.toml, and those that hold for every plug-in found here."""

from __future__ import annotations

import configparser
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[1]


def contracts(plugins: list[str]) -> list[dict[str, Any]]:
    """What holds for every plug-in, without a list of them to keep."""
    light = ["fewstep.cards", "fewstep.errors", "fewstep.plugins", *(f"{name}.plugin" for name in plugins)]
    return [
        {
            "name": "core knows no plug-in, plug-ins do not know each other",
            "type": "layers",
            "layers": [" | ".join(plugins), "fewstep"],
        },
        {
            "name": "cards and discovery import nothing heavy",
            "type": "forbidden",
            "source_modules": light,
            "forbidden_modules": ["torch", "transformers", "diffusers", "safetensors", "huggingface_hub", "numpy"],
        },
    ]


def ini(config: dict[str, Any]) -> configparser.ConfigParser:
    """The same configuration in import-linter's INI form, which the standard library can write."""
    parser = configparser.ConfigParser(interpolation=None)
    flat = {key: value for key, value in config.items() if key != "contracts"}
    sections = {f"importlinter:contract:{i}": contract for i, contract in enumerate(config["contracts"])}
    for section, values in {"importlinter": flat, **sections}.items():
        parser[section] = {
            key: "\n" + "\n".join(value) if isinstance(value, list) else str(value) for key, value in values.items()
        }
    return parser


def main() -> int:
    plugins = sorted(path.name for path in ROOT.glob("packages/*/src/fewstep_*") if (path / "plugin.py").exists())
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    config["root_packages"] = ["fewstep", *plugins]
    config["contracts"] = [*config["contracts"], *contracts(plugins)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ".importlinter"
        with path.open("w", encoding="utf-8") as file:
            ini(config).write(file)
        return lint_imports(config_filename=str(path), no_cache=True, no_logo=True)


if __name__ == "__main__":
    sys.exit(main())
