"""Weights of a few-step student: all of them or a LoRA, fitted to a transformer, and LoRAs extracted from full ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import BadFileError, UnsupportedModelError
from ..families import has_fused_adapters, plain_parameters


@dataclass(frozen=True)
class LoraFactors:
    """A low-rank change of one weight, ``W + up @ down``, with any scale folded in."""

    down: Float[Tensor, "r i"]
    """``lora_A`` of PEFT."""
    up: Float[Tensor, "o r"]
    """``lora_B`` of PEFT."""

    def delta(self) -> Float[Tensor, "o i"]:
        """The change itself, in float32."""
        return self.up.float() @ self.down.float()


@dataclass(frozen=True)
class StudentWeights:
    """Weights under diffusers' names; either `full`, or a LoRA in the other two."""

    full: dict[str, Tensor] = field(default_factory=dict)
    """Value of each parameter of the transformer."""
    factors: dict[str, LoraFactors] = field(default_factory=dict)
    """Low-rank change of the weight of each module."""
    deltas: dict[str, Tensor] = field(default_factory=dict)
    """Changes of other parameters: biases, norms, modulation."""

    def changes(self) -> dict[str, Tensor]:
        """The change of each parameter that a LoRA changes, in float32."""
        changes = {f"{module}.weight": factors.delta() for module, factors in self.factors.items()}
        for name, delta in self.deltas.items():
            changes[name] = changes[name] + delta.float() if name in changes else delta.float()
        return changes

    def scaled(self, strength: float) -> StudentWeights:
        """The same LoRA with `strength` times its change."""
        factors = {name: LoraFactors(pair.down, pair.up * strength) for name, pair in self.factors.items()}
        return StudentWeights(factors=factors, deltas={name: delta * strength for name, delta in self.deltas.items()})

    def values(self, transformer: nn.Module, strength: float, source: Any) -> dict[str, Tensor]:
        """New value of each parameter of `transformer` that the student changes.

        Args:
            transformer: the teacher's; it is not changed.
            strength: share of a LoRA's change that is added.
            source: path of the weights, for messages.

        Raises:
            BadFileError: the weights do not fit; the first misfit is named.
            UnsupportedModelError: another LoRA is fused into weights that the student replaces.
        """
        current = plain_parameters(transformer)
        self.check_fits({name: parameter.shape for name, parameter in current.items()}, source)
        if self.full and has_fused_adapters(transformer):
            raise UnsupportedModelError(
                f"a LoRA is fused into the weights of this {type(transformer).__name__}, which the student's weights "
                "replace: call unfuse_lora() first, then it acts on top of the student"
            )
        if self.full:
            return self.full
        return {
            name: current[name].detach().float() + strength * change.to(current[name].device)
            for name, change in self.changes().items()
        }

    def check_fits(self, shapes: Mapping[str, torch.Size], source: Any) -> None:
        """Compare with a transformer, strictly: full weights have exactly its parameters, a LoRA no others.

        Args:
            shapes: shape of each parameter of the transformer.
            source: path of the weights, for messages.

        Raises:
            BadFileError: a name is missing or unknown, or a shape differs; the first misfit is named.
        """
        own = {name: tuple(tensor.shape) for name, tensor in (self.full or self.deltas).items()}
        for module, factors in self.factors.items():
            own[f"{module}.weight"] = (factors.up.shape[0], factors.down.shape[1])
            if factors.up.shape[1] != factors.down.shape[0]:
                raise BadFileError(f"{source}: the low-rank factors of {module} have different ranks")
        if extra := [name for name in own if name not in shapes]:
            raise BadFileError(f"{source} does not fit the transformer, which has no {extra[0]}")
        if self.full and (missing := [name for name in shapes if name not in own]):
            raise BadFileError(f"{source} does not fit the transformer: {missing[0]} is missing")
        for name, shape in own.items():
            if shape != tuple(shapes[name]):
                raise BadFileError(
                    f"{source} does not fit: {name} is {shape}, in the transformer {tuple(shapes[name])}"
                )


def extract_lora(before: Mapping[str, Tensor], after: Mapping[str, Tensor], rank: int) -> tuple[StudentWeights, float]:
    """Find the best LoRA of `rank` between two sets of full weights, by singular values.

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


def _truncated(delta: Float[Tensor, "o i"], rank: int) -> tuple[LoraFactors, float]:
    """Factors of the largest singular values, half of each in either factor, and the squared rest."""
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    root = values[:rank].sqrt()
    factors = LoraFactors((root[:, None] * right[:rank]).contiguous(), (left[:, :rank] * root).contiguous())
    return factors, values[rank:].square().sum().item()
