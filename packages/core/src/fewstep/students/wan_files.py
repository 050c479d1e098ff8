"""Files of a Wan student's weights: full weights or a LoRA, in the names of diffusers, PEFT, LightX2V and ComfyUI."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..data.weights import shards
from ..errors import BadFileError
from ..families.wan_names import are_native, from_kohya, to_diffusers, to_native
from .checkpoints import SUFFIXES, read_checkpoint
from .weights import LoraFactors, StudentWeights

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "base_model.model.", "transformer.", "model.")
"""Prefixes that other programs put before a name."""
KOHYA = "lora_unet_"
"""Begin of the names of kohya's trainers, which have underscores for dots."""
_FACTORS = {
    ".lora_A.weight": "down",
    ".lora_down.weight": "down",
    ".lora_A.default.weight": "down",
    ".lora_B.weight": "up",
    ".lora_up.weight": "up",
    ".lora_B.default.weight": "up",
    ".alpha": "alpha",
}
_DELTAS = {".diff_b": ".bias", ".lora_B.bias": ".bias", ".diff_m": ".modulation"}
_TABLES = (".modulation", ".scale_shift_table", ".pos_embed", ".emb_pos")
"""Parameters that are no module's weight or bias: ``NAME.diff`` changes the parameter itself."""


def read(path: Path, part: str = "generator_ema") -> StudentWeights:
    """Read a student: full weights or a LoRA, of diffusers, PEFT, LightX2V, ComfyUI or kohya's trainers.

    Args:
        path: a safetensors file, the index of several, or the folder of either; or a checkpoint of training (``.pt``).
        part: of a checkpoint.

    Raises:
        BadFileError: not such a file, a number in it is not finite, or a name is of no known kind; the message names
            the first.
    """
    if path.suffix.lower() in SUFFIXES:
        tensors, metadata = read_checkpoint(path, part), {}
    else:
        tensors, metadata = _safetensors(path)
    if bad := next((name for name, value in tensors.items() if not _finite(value)), None):
        raise BadFileError(f"{path}: {bad} holds numbers that are not finite: damaged, or training diverged")
    tensors = _without_prefix(_from_kohya(tensors, path), path)
    if not any(name.endswith((*_FACTORS, *_DELTAS, ".diff")) for name in tensors):
        rename = to_diffusers if are_native(tensors) else str
        return StudentWeights(full={rename(name): tensor for name, tensor in tensors.items()})
    return _lora(tensors, path, _metadata_scale(metadata))


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of all shards."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    try:
        for shard in shards(path):
            with safe_open(shard, framework="pt") as file:
                metadata |= file.metadata() or {}
            tensors |= load_file(shard)
    except (SafetensorError, OSError) as error:
        raise BadFileError(f"{path} cannot be read as safetensors: {error}") from error
    return tensors, metadata


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.float()).all())


def _from_kohya(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same tensors, with dots in the names of kohya's trainers: ``lora_unet_blocks_0_self_attn_q.alpha``."""
    if not any(name.startswith("lora_") for name in tensors):
        return tensors
    if strange := [name for name in tensors if not name.startswith(KOHYA)]:
        raise BadFileError(f"{path}: {strange[0]!r} is for no transformer; a LoRA without text encoder is needed")
    parts = {name: name.removeprefix(KOHYA).partition(".") for name in tensors}
    return {f"{from_kohya(module)}.{kind}": tensors[name] for name, (module, _, kind) in parts.items()}


def _metadata_scale(metadata: Mapping[str, str]) -> float:
    """``alpha / r`` from the adapter metadata that diffusers writes; 1 without."""
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError as error:
        raise BadFileError(f"lora_adapter_metadata is damaged: {error}") from error
    plain = {name.removeprefix("transformer."): value for name, value in config.items()}
    if plain.get("rank_pattern") or plain.get("alpha_pattern") or plain.get("use_rslora"):
        raise BadFileError("a LoRA with rank_pattern, alpha_pattern or use_rslora in its metadata is not supported")
    return plain["lora_alpha"] / plain["r"] if "lora_alpha" in plain else 1.0


def _without_prefix(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            if strange := [name for name in tensors if not name.startswith(prefix)]:
                raise BadFileError(f"{path}: {strange[0]!r} has no prefix {prefix!r}, which other names have")
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _lora(tensors: dict[str, Tensor], path: Path, scale: float) -> StudentWeights:
    parts: dict[str, dict[str, Tensor]] = {}
    deltas: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if suffix := _suffix(name, _FACTORS):
            parts.setdefault(name.removesuffix(suffix), {})[_FACTORS[suffix]] = tensor
        elif suffix := _suffix(name, _DELTAS):
            deltas[name.removesuffix(suffix) + _DELTAS[suffix]] = tensor
        elif name.endswith(".diff"):
            owner = name.removesuffix(".diff")
            deltas[owner if f".{owner}".endswith(_TABLES) else f"{owner}.weight"] = tensor
        else:
            raise BadFileError(f"{path}: {name!r} is no part of a LoRA, and other names in it are")
    for module, part in parts.items():
        if "down" not in part or "up" not in part:
            raise BadFileError(f"{path}: {module} has only {' and '.join(sorted(part))} of its low-rank factors")
    rename = to_diffusers if are_native([*parts, *deltas]) else str
    factors = {rename(module): _folded(part, scale) for module, part in parts.items()}
    return StudentWeights(factors=factors, deltas={rename(name): delta for name, delta in deltas.items()})


def _suffix(name: str, known: Mapping[str, str]) -> str | None:
    return next((suffix for suffix in known if name.endswith(suffix)), None)


def _folded(part: dict[str, Tensor], scale: float) -> LoraFactors:
    """Both factors with ``alpha / r`` in the second."""
    down, up = part["down"], part["up"]
    if "alpha" in part:
        scale = part["alpha"].item() / down.shape[0]
    return LoraFactors(down, up if scale == 1 else (up.float() * scale).to(up.dtype))


def peft_tensors(student: StudentWeights) -> tuple[dict[str, Tensor], list[str]]:
    """A LoRA in the names of diffusers and PEFT, and the parameters whose change has no name there."""
    tensors: dict[str, Tensor] = {}
    biases = {name.removesuffix(".bias") for name in student.deltas if name.endswith(".bias")} & student.factors.keys()
    for module, factors in student.factors.items():
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = factors.down, factors.up
        if biases:  # one LoraConfig for all: with biases everywhere, or nowhere
            zero = torch.zeros(factors.up.shape[0], dtype=factors.up.dtype)
            tensors[f"{module}.lora_B.bias"] = student.deltas.get(f"{module}.bias", zero)
    return tensors, [name for name in student.deltas if name.removesuffix(".bias") not in biases]


def native_tensors(student: StudentWeights, factors: tuple[str, str], tables: Mapping[str, str]) -> dict[str, Tensor]:
    """Full weights under native names, or a LoRA with ``diffusion_model.`` before them.

    Args:
        student: weights to rename.
        factors: names of the two low-rank factors: ``("lora_down", "lora_up")``.
        tables: ending of a parameter to that of its change: ``{".modulation": ".diff_m"}``.
    """
    if student.full:
        return {to_native(name): tensor for name, tensor in student.full.items()}
    tensors = {}
    for module, pair in student.factors.items():
        name = to_native(module)
        tensors |= {f"{name}.{factors[0]}.weight": pair.down, f"{name}.{factors[1]}.weight": pair.up}
    endings = {".weight": ".diff", ".bias": ".diff_b", **tables, ".emb_pos": ".emb_pos.diff"}
    for parameter, delta in student.deltas.items():
        name = to_native(parameter)
        ending = next(ending for ending in endings if f".{name}".endswith(ending))
        tensors[name.removesuffix(ending) + endings[ending]] = delta
    return {f"diffusion_model.{name}": tensor for name, tensor in tensors.items()}


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that appears complete or not at all; its folder is made.

    Raises:
        OSError: the folder cannot be made or the file not be put in place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    save_file(plain, part, metadata={"format": "pt"})
    os.replace(part, path)
