"""Shape annotations of the pure maths are checked whenever the tests run."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch
from fewstep.kernels.block_means.naive import block_means
from jaxtyping import TypeCheckError

ROOT = Path(__file__).resolve().parents[1]
OPTION = "--jaxtyping-packages="


def checked() -> list[str]:
    """Names of the modules that the option of pytest lists, without the checker at its end."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    (option,) = (option for option in options["addopts"] if option.startswith(OPTION))
    return option.removeprefix(OPTION).split(",")[:-1]


def names(pattern: str) -> set[str]:
    """Dotted names of the files that match in the sources of all packages."""
    files = (path.relative_to(src) for src in ROOT.glob("packages/*/src") for path in src.glob(pattern))
    return {".".join(file.with_suffix("").parts) for file in files}


def test_every_module_that_is_listed_exists():
    listed = checked()
    assert len(set(listed)) == len(listed) and set(listed) <= names("**/*.py")


def test_every_kernel_is_listed():
    assert names("fewstep/kernels/*/naive.py") | names("fewstep/kernels/*/cpu.py") <= set(checked())


def test_a_false_shape_is_found():
    with pytest.raises(TypeCheckError, match="block_means"):
        block_means(torch.ones(2, 3), block=1)
