"""Headers of safetensors files: shapes of weights without reading them, and configurations that do not fit them."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import BadFileError
from .files import read_text

INDEX = ".safetensors.index.json"
"""End of the name of the file that lists the shards of large weights."""
LONGEST_HEADER = 100_000_000
"""Bytes; safetensors itself refuses more."""
_COUNTS = re.compile(r"(num|n)_\w*(layers|blocks|experts)|(num|n)_(layers|blocks)|depth|layers_per_block")
_SIZES = re.compile(r"\w*(hidden_size|intermediate_size|ffn_dim|d_model|head_dim|channels|base_dim|z_dim|vocab_size)")


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights in the safetensors files of a folder, by name; empty where there are none.

    Raises:
        BadFileError: a header is truncated or damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            for name, about in _header(file).items():
                if name != "__metadata__":
                    shapes[name] = tuple(int(size) for size in about["shape"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise BadFileError(f"{file} is damaged: its header cannot be read ({error}); download it again") from error
    return shapes


def shards(path: Path) -> list[Path]:
    """The safetensors files behind a path: the file itself, those of an index, or those of a folder with either.

    Raises:
        BadFileError: an index is damaged or names a file that is missing, or a folder holds no or several weights.
    """
    if path.is_dir():
        found = sorted(path.glob(f"*{INDEX}")) or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            inside = f"{len(found)} ({', '.join(file.name for file in found[:3])})" if found else "none"
            raise BadFileError(f"{path} is a folder with {inside} sets of safetensors weights: name one file")
        return shards(found[0])
    if not path.name.endswith(INDEX):
        return [path]
    try:
        names = sorted(set(json.loads(read_text(path))["weight_map"].values()))
        files = [path.parent / Path(name).name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFileError(f"{path} is no index of safetensors files: {error}") from error
    if missing := [file.name for file in files if not file.is_file()]:
        raise BadFileError(f"{path} names {missing[0]}, which is missing; download it again")
    return files


def _header(file: Path) -> dict[str, Any]:
    with open(file, "rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > min(LONGEST_HEADER, file.stat().st_size):
            raise ValueError(f"a header of {length} bytes")
        return json.loads(opened.read(length))


def check_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: Path) -> None:
    """Refuse a configuration that describes a larger model than its weights can be, before anything is built.

    Raises:
        BadFileError: a number of layers is above the number of weights, or a width above the number of all elements.
    """
    elements = sum(math.prod(shape) for shape in shapes.values())
    for name, value in _numbers(config):
        limit = len(shapes) if _COUNTS.fullmatch(name) else elements if _SIZES.fullmatch(name) else None
        if limit and not -1 <= value <= limit:
            raise BadFileError(
                f"{where} says {name} = {value}, but its weights are {len(shapes)} tensors of {elements:,} numbers"
            )


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Whole numbers of a configuration and of what is nested in it, by their own names."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int) and not isinstance(one, bool):
                yield name, one
