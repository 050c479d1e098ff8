"""Optimisers of one role: AdamW, and Muon for matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from .roles import Role


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (arXiv 1711.05101) with a learning rate by step."""

    lr: float = 2e-6
    """Highest learning rate."""
    betas: tuple[float, float] = (0.0, 0.999)
    """Decay of the two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    warmup: int = 0
    """Steps in which the rate rises linearly."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The rate after the warm-up; cosine falls to zero at the last step."""

    def __post_init__(self) -> None:
        if not self.lr > 0 or not all(0 <= beta < 1 for beta in self.betas) or self.warmup < 0:
            raise ValueError(f"an optimiser needs lr > 0, betas in [0, 1) and warmup >= 0, found {self}")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate in step number `step` (from 0) of `steps`."""
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        falling = 0.5 * (1 + math.cos(math.pi * step / steps)) if self.schedule == "cosine" else 1.0
        return self.lr * rising * falling

    def make(self, role: Role) -> torch.optim.Optimizer | OptimizerPair:
        """Make the optimiser of a role, with its moments there already: the names in checkpoints never change."""
        weights = role.parameters()
        return self._adamw(weights, fused=not any(isinstance(weight, DTensor) for weight in weights))

    def _adamw(self, weights: Sequence[Tensor], *, fused: bool) -> torch.optim.AdamW:
        made = torch.optim.AdamW(
            weights, self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=fused
        )
        for weight in weights:
            zeros = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            made.state[weight] = {"step": torch.zeros((), device=weight.device if fused else "cpu"), **zeros}
        return made


@dataclass(frozen=True, kw_only=True)
class Muon(AdamW):
    """Muon for the matrices and convolution kernels of repeated layers and AdamW for the rest, at one rate.

    Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) makes the momentum of a matrix orthogonal.
    Its updates are scaled to the size of AdamW's (arXiv 2502.16982, equation 4), so a rate means the same for both.
    A kernel ``[out, in, ...]`` counts as the matrix ``[out, in ...]``.
    """

    momentum: float = 0.95
    """Decay of the momentum of the matrices, Nesterov's."""

    def make(self, role: Role) -> OptimizerPair:
        """See `AdamW.make`.

        Raises:
            ValueError: the role's weights are sharded; Muon needs whole matrices.
        """
        named = role.named_parameters()
        if any(isinstance(weight, DTensor) for weight in named.values()):
            raise ValueError("Muon needs whole matrices; with several processes use --parallel replicate")
        matrices = {name: _matrix(weight) for name, weight in named.items() if _repeated(name) and _is_matrix(weight)}
        rest = [weight for name, weight in named.items() if name not in matrices]
        muon = torch.optim.Muon(
            matrices.values(),
            self.lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        for matrix in matrices.values():
            muon.state[matrix] = {"momentum_buffer": torch.zeros_like(matrix)}
        views: dict[Tensor, Tensor] = {
            named[name]: matrix for name, matrix in matrices.items() if matrix is not named[name]
        }
        return OptimizerPair(muon, self._adamw(rest, fused=True), views=views)


class OptimizerPair:
    """Two optimisers as one. `views`: kernels, and the matrices on the same memory that stand for them."""

    def __init__(self, *parts: torch.optim.Optimizer, views: Mapping[Tensor, Tensor] | None = None) -> None:
        self.parts, self.views = parts, views or {}
        self.param_groups = [group for part in parts for group in part.param_groups]
        self.state = {weight: values for part in parts for weight, values in part.state.items()}
        self.state |= {kernel: self.state[matrix] for kernel, matrix in self.views.items()}

    def step(self) -> None:
        """Make a step of each."""
        for kernel, matrix in self.views.items():
            matrix.grad = None if kernel.grad is None else kernel.grad.reshape(matrix.shape)
        for part in self.parts:
            with _Float32OnCPU():
                part.step()


class _Float32OnCPU(TorchFunctionMode):
    """Lets torch's Muon, which asks for bfloat16, orthogonalise in float32 on a CPU.

    Most CPUs multiply no bfloat16: there the steps of a small model took longer than its gradients.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.bfloat16 and args[0].device.type == "cpu":
            return args[0].to(torch.float32, copy=True)
        return func(*args, **(kwargs or {}))


def _is_matrix(weight: Tensor) -> bool:
    return weight.ndim >= 2 and weight.shape[0] > 1 and weight[0].numel() > 1


def _matrix(weight: Tensor) -> Tensor:
    return weight if weight.ndim == 2 else torch.nn.Parameter(weight.detach().flatten(1))


def _repeated(name: str) -> bool:
    """True for a weight of one of a list of layers: ``blocks.3.ffn.net.2.weight``."""
    return any(part.isdigit() for part in name.split("."))


def optimiser_state(optimiser: torch.optim.Optimizer | OptimizerPair, role: Role) -> dict[str, Tensor]:
    """The tensors of an optimiser by the names of the weights they belong to: ``proj.weight/exp_avg``."""
    return {
        f"{name}/{kind}": value
        for name, weight in role.named_parameters().items()
        for kind, value in optimiser.state[weight].items()
    }
