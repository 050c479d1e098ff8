"""Check imports: the contracts of core, those that hold for every plug-in found here, and that none are circular."""

from __future__ import annotations

import configparser
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import grimp
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[1]


def plugins() -> list[str]:
    """Import names of the plug-ins of this workspace."""
    return sorted(path.name for path in ROOT.glob("packages/*/src/fewstep_*") if (path / "plugin.py").exists())


def between_packages(names: list[str]) -> list[dict[str, Any]]:
    """The contract of all packages, without a list of plug-ins to keep."""
    return [
        {
            "name": "core knows no plug-in, plug-ins do not know each other",
            "type": "layers",
            "layers": [" | ".join(names), "fewstep"],
        }
    ]


def light(names: list[str]) -> list[dict[str, Any]]:
    """The contract of what every start of the command imports; what only a type checker imports costs no start."""
    return [
        {
            "name": "cards and discovery import nothing heavy",
            "type": "forbidden",
            "source_modules": [
                "fewstep.cards",
                "fewstep.errors",
                "fewstep.plugins",
                *(f"{name}.plugin" for name in names),
            ],
            "forbidden_modules": ["torch", "transformers", "diffusers", "safetensors", "huggingface_hub", "numpy"],
        }
    ]


def lint(config: dict[str, Any]) -> int:
    """Exit code of import-linter with this configuration."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ".importlinter"
        with path.open("w", encoding="utf-8") as file:
            ini(config).write(file)
        return lint_imports(config_filename=str(path), no_cache=True, no_logo=True)


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


def circles(packages: list[str]) -> list[list[str]]:
    """Modules that import each other in a circle, directly or through others; type-only and late imports count.

    Args:
        packages: import names of packages that Python can find; none of them is run.

    Returns:
        The sorted module names of each strongly connected component of more than one module.
    """
    graph = grimp.build_graph(*packages, exclude_type_checking_imports=False, cache_dir=None)
    components = {
        frozenset({module, *graph.find_upstream_modules(module) & graph.find_downstream_modules(module)})
        for module in graph.modules
    }
    return sorted(sorted(component) for component in components if len(component) > 1)


def main() -> int:
    names = plugins()
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    config["root_packages"] = ["fewstep", *names]
    config["contracts"] = [*config["contracts"], *between_packages(names)]
    start = config | {"exclude_type_checking_imports": True, "contracts": light(names)}
    for circle in (found := circles(config["root_packages"])):
        print("these modules import each other in a circle:", *circle)
    return lint(config) or lint(start) or bool(found)


if __name__ == "__main__":
    sys.exit(main())
