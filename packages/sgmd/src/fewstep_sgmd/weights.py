"""A student's weights as a file: all of them, or a LoRA with what else changed, under diffusers' or native names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fewstep.errors import BadFileError
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .names import are_native, to_diffusers

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "base_model.model.", "transformer.")
"""What other programs put before a name."""
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


@dataclass(frozen=True)
class Factors:
    """A low-rank change of one weight: ``W + up @ down``, with any scale folded in."""

    down: Float[Tensor, "r i"]
    up: Float[Tensor, "o r"]

    def delta(self) -> Float[Tensor, "o i"]:
        """The change itself, in float32."""
        return self.up.float() @ self.down.float()


@dataclass(frozen=True)
class StudentWeights:
    """What a file holds, under diffusers' names; either `full` or the other two are empty."""

    full: dict[str, Tensor] = field(default_factory=dict)
    """Parameter to value: the whole transformer."""
    factors: dict[str, Factors] = field(default_factory=dict)
    """Module to a low-rank change of its weight."""
    deltas: dict[str, Tensor] = field(default_factory=dict)
    """Parameter to a change of it: biases, norms, modulation."""

    def changes(self) -> dict[str, Tensor]:
        """Parameter to its change in float32, for a student that is a LoRA."""
        found = {f"{module}.weight": factors.delta() for module, factors in self.factors.items()}
        for name, delta in self.deltas.items():
            found[name] = found[name] + delta.float() if name in found else delta.float()
        return found


def read(path: Path) -> StudentWeights:
    """Read a student from a safetensors file: full weights or a LoRA, of diffusers, PEFT, LightX2V or ComfyUI.

    Raises:
        BadFileError: not a safetensors file, or a name in it is of no known kind; the message names the first.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no mapping
            scale = _metadata_scale(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise BadFileError(f"{path} cannot be read as safetensors: {error}") from error
    tensors = _unprefixed(tensors, path)
    if not any(name.endswith((*_FACTORS, *_DELTAS, ".diff")) for name in tensors):
        return StudentWeights(full=_renamed(tensors))
    return _lora(tensors, path, scale)


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


def _unprefixed(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            if strange := [name for name in tensors if not name.startswith(prefix)]:
                raise BadFileError(f"{path}: {strange[0]!r} has no prefix {prefix!r}, which other names have")
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {to_diffusers(name): tensor for name, tensor in tensors.items()} if are_native(tensors) else tensors


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
    for module, found in parts.items():
        if "down" not in found or "up" not in found:
            raise BadFileError(f"{path}: {module} has only {' and '.join(sorted(found))} of its low-rank factors")
    native = are_native([*parts, *deltas])
    rename = to_diffusers if native else str
    factors = {rename(module): _folded(found, scale) for module, found in parts.items()}
    return StudentWeights(factors=factors, deltas={rename(name): delta for name, delta in deltas.items()})


def _suffix(name: str, known: Mapping[str, str]) -> str | None:
    return next((suffix for suffix in known if name.endswith(suffix)), None)


def _folded(found: dict[str, Tensor], scale: float) -> Factors:
    """Both factors with ``alpha / r`` in the second."""
    down, up = found["down"], found["up"]
    if "alpha" in found:
        scale = found["alpha"].item() / down.shape[0]
    return Factors(down, up if scale == 1 else (up.float() * scale).to(up.dtype))


def extract(before: Mapping[str, Tensor], after: Mapping[str, Tensor], rank: int) -> tuple[StudentWeights, float]:
    """The best LoRA of `rank` between two sets of full weights, by singular values; other parameters as they changed.

    Two-dimensional weights become factors (exactly, where their rank allows); biases, norms, tables and the patch
    embedding become deltas, unless they did not change.

    Returns:
        The LoRA, and the share of the squared change that it keeps, 0 to 1.

    Raises:
        ValueError: the two do not have the same parameters, or rank is not positive.
    """
    if rank < 1:
        raise ValueError(f"the rank of a LoRA must be 1 or more, found {rank}")
    if different := before.keys() ^ after.keys():
        raise ValueError(f"the base model and the student differ in their parameters: {min(different)}")
    factors, deltas, total, lost = {}, {}, 0.0, 0.0
    for name, weight in after.items():
        delta = weight.float() - before[name].to(weight.device).float()
        if not delta.any():
            continue
        total += delta.square().sum().item()
        if delta.ndim == 2 and name.endswith(".weight"):
            factors[name.removesuffix(".weight")], dropped = _truncated(delta, rank)
            lost += dropped
        else:
            deltas[name] = delta
    return StudentWeights(factors=factors, deltas=deltas), 1 - lost / total if total else 1.0


def _truncated(delta: Float[Tensor, "o i"], rank: int) -> tuple[Factors, float]:
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    root = values[:rank].sqrt()
    factors = Factors((root[:, None] * right[:rank]).contiguous(), (left[:, :rank] * root).contiguous())
    return factors, values[rank:].square().sum().item()
