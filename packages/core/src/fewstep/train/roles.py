"""Roles: networks as student, critic and teacher, with weights of their own or LoRA adapters on one base."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from .. import families, flow
from ..flow import Latent, Sigma
from . import adapters, conditions

Predict = Callable[[nn.Module, Latent, Float[Tensor, " b"], Any], Latent]
"""``(network, noisy, sigma [B], cond) -> velocity``: a call of a network, as its family makes it."""
Recomputed = Callable[..., Any]
"""``(function, *args) -> function(*args)``, with the activations of `function` recomputed in the backward pass."""


@dataclass(eq=False)
class Role:
    """One network in one part: the weights that are trained, and predictions by the conventions of `fewstep.flow`."""

    network: nn.Module
    """Shared between roles that are adapters on one base."""
    adapter: str | None = None
    """Name of the LoRA adapter that is this role; None is the network as it is, with all adapters off."""
    predict: Predict | None = None
    """Call of the network; None takes that of its model family."""
    autocast: torch.dtype | None = None
    """Run the network under autocast to this type; None runs it in the type of its weights."""
    dtype: torch.dtype | None = None
    """Type that inputs are cast to; None is that of most weights."""
    recomputed: Recomputed = field(default=partial(checkpoint, use_reentrant=False), repr=False)
    """Runs a function of tensors so that its activations are not kept, but computed again in the backward pass."""

    def __post_init__(self) -> None:
        self._layers = adapters.layers(self.network)

    def velocity(self, noisy: Latent, sigma: Sigma, cond: Any) -> Latent:
        """Predict the velocity ``eps - x`` in float32 (float64 from a float64 network), with gradients.

        Args:
            noisy: ``x_s``, ``[B, C, F, H, W]``.
            sigma: noise level, a number or ``[B]``.
            cond: prompt embeddings ``[B, T, d]``, or what `predict` of this role takes.

        Raises:
            UnsupportedModelError: no `predict` was given, and the network is of no family that has a velocity.
        """
        predict = self.predict or velocity_of(self.network)
        levels = self._levels(noisy, sigma)
        with self.running(noisy, cond) as (network, noisy, cond):
            return predict(network, noisy, levels, cond).to(levels.dtype)

    def hidden_tokens(self, noisy: Latent, sigma: Sigma, cond: Any, block: int) -> Float[Tensor, "b f s d"]:
        """Tokens after one block of the network, by latent frame, in its own precision; later blocks do not run.

        Args:
            noisy: ``x_s``, ``[B, C, F, H, W]``; gradients flow to it.
            sigma: noise level, a number or ``[B]``.
            cond: prompt embeddings ``[B, T, d]``.
            block: number of the block, from 0.

        Raises:
            ValueError: there is no such block.
            UnsupportedModelError: the network is of no family that has a velocity.
        """
        levels = self._levels(noisy, sigma)
        with self.running(noisy, cond) as (network, noisy, cond):
            return families.denoiser(network).hidden_tokens(network, noisy, levels, cond, block)

    def _levels(self, noisy: Latent, sigma: Sigma) -> Float[Tensor, " b"]:
        """One noise level for each sample, in float32, or in float64 for a network of that."""
        exact = torch.promote_types(self.input_dtype or noisy.dtype, torch.float32)
        return torch.as_tensor(sigma, dtype=exact, device=noisy.device).expand(noisy.shape[0])

    @contextmanager
    def running(self, latent: Latent, cond: Any) -> Iterator[tuple[nn.Module, Latent, Any]]:
        """The network with this role's adapter and precision, and the inputs as it takes them."""
        dtype = self.input_dtype or latent.dtype
        with self.use_adapter(), self._cast(latent.device.type):
            yield self.network, latent.to(dtype), conditions.cast(cond, dtype)

    @property
    def input_dtype(self) -> torch.dtype | None:
        """Type that latents and conditions are cast to; None for a network without weights, which takes any."""
        return self.dtype or self._weights_dtype

    def use_adapter(self) -> AbstractContextManager[None]:
        """Run the network with this role's adapter (or none), whoever calls it: a pipeline too."""
        return adapters.using(self._layers, self.adapter)

    def x0(self, noisy: Latent, sigma: Sigma, cond: Any) -> Latent:
        """Predict the clean latent, ``x0 = x_s - s v``."""
        return flow.x0_from_velocity(noisy, self.velocity(noisy, sigma, cond), sigma)

    def _cast(self, device: str) -> Any:
        if self.autocast is None or device == "meta":
            return nullcontext()
        return torch.autocast(device, self.autocast)

    @cached_property
    def _weights_dtype(self) -> torch.dtype | None:
        # not that of the first weight: models in half precision keep a few of them in float32
        counts: Counter[torch.dtype] = Counter()
        for weight in self.network.parameters():
            counts[weight.dtype] += weight.numel()
        return counts.most_common(1)[0][0] if counts else None

    def state(self) -> dict[str, Tensor]:
        """Tensors that this role trains, by name: all weights and buffers of the network, or those of the adapter."""
        if self.adapter is None:
            return self.network.state_dict()
        return {k: v for k, v in self.network.state_dict().items() if adapters.belongs(k, self.adapter)}

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters among `state`."""
        named = self.network.named_parameters()
        if self.adapter is None:
            return {name: weight for name, weight in named if not adapters.is_adapter(name)}
        return {name: weight for name, weight in named if adapters.belongs(name, self.adapter)}

    def parameters(self) -> list[nn.Parameter]:
        """Parameters that an optimiser of this role updates."""
        return list(self.named_parameters().values())

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Compute no weight gradients of this role, while gradients still flow through it to its input.

        The backward pass (and with activation checkpointing its recomputation) belongs inside. Sharded weights keep
        their flags, which `fully_shard` reads only once: their gradients are dropped by `Roles.zero_grad`.
        """
        if any(isinstance(weight, DTensor) for weight in self.parameters()):
            yield
            return
        before = [(weight, weight.requires_grad) for weight in self.parameters()]
        for weight, _ in before:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight, flag in before:
                weight.requires_grad_(flag)


class Roles(Mapping[str, Role]):
    """The roles of one training run by name: ``roles.student``, ``roles["critic"]``."""

    def __init__(self, **roles: Role) -> None:
        self._roles = roles

    def __getitem__(self, name: str) -> Role:
        return self._roles[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._roles)

    def __len__(self) -> int:
        return len(self._roles)

    def __getattr__(self, name: str) -> Role:
        roles = self.__dict__.get("_roles", {})
        if name not in roles:
            raise AttributeError(f"there is no role {name!r}, only {', '.join(roles)}")
        return roles[name]

    @property
    def main(self) -> Role:
        """The first role: the one that the run is for."""
        return next(iter(self.values()))

    def networks(self) -> list[nn.Module]:
        """The distinct networks, in order of their roles."""
        return list({id(role.network): role.network for role in self.values()}.values())

    def zero_grad(self) -> None:
        """Drop the gradients of all roles, whoever caused them."""
        for network in self.networks():
            network.zero_grad(set_to_none=True)

    @contextmanager
    def updating(self, name: str) -> Iterator[Role]:
        """Freeze every role but one, forward and backward."""
        with ExitStack() as stack:
            for other, role in self.items():
                if other != name:
                    stack.enter_context(role.frozen())
            yield self[name]


def guided(role: Role, noisy: Latent, sigma: Sigma, cond: Any, uncond: Any, scale: float) -> Latent:
    """Velocity with classifier-free guidance, ``v_u + w (v_c - v_u)``; both in one call of the network.

    Args:
        role: whose velocity.
        noisy: ``x_s``, ``[B, C, F, H, W]``.
        sigma: noise level, a number or ``[B]``.
        cond: prompt embeddings ``[B, T, d]``.
        uncond: those of the negative prompt, ``[B, T, d]`` or ``[1, T, d]``.
        scale: ``w``; 1 is the conditional velocity, at half the cost. Codes that write ``v_c + g (v_c - v_u)`` have
            ``g = w - 1``.
    """
    if scale == 1:
        return role.velocity(noisy, sigma, cond)
    both = conditions.paired(cond, uncond)
    levels = torch.as_tensor(sigma, device=noisy.device).expand(noisy.shape[0])
    with_prompt, without = role.velocity(noisy.repeat(2, *[1] * (noisy.ndim - 1)), levels.repeat(2), both).chunk(2)
    return without + scale * (with_prompt - without)


def velocity_of(network: nn.Module) -> Predict:
    """Return the velocity function of a network's family.

    Raises:
        UnsupportedModelError: the network is of no family, or of one that predicts no velocity.
    """
    return families.denoiser(network).velocity


def full_roles(network: nn.Module, *, predict: Predict | None = None) -> Roles:
    """Student and critic as copies of `network` with weights of their own, and the frozen teacher."""
    student, critic = copy.deepcopy(network), copy.deepcopy(network)
    roles = Roles(**{n: Role(m, predict=predict) for n, m in (("student", student), ("critic", critic))})
    for role in roles.values():
        role.network.requires_grad_(True)
    return Roles(**roles, teacher=Role(network.requires_grad_(False), predict=predict))


def lora_roles(
    network: nn.Module,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    seed: int = 0,
    predict: Predict | None = None,
) -> Roles:
    """Student and critic as LoRA adapters on `network`, which without them is the teacher: one copy of the weights.

    Args:
        network: a diffusers model; it gets the adapters ``student`` and ``critic`` and is frozen otherwise.
        rank: of both adapters.
        alpha: the adapter's output is scaled by ``alpha / rank``.
        targets: endings of the names of the linear layers that get adapters.
        seed: of the random half of the adapters; the other half is zero, so that both start as the teacher.
        predict: call of the network; None takes that of its model family.
    """
    adapters.add(network, ("student", "critic"), rank=rank, alpha=alpha, targets=targets, seed=seed)
    names = ("student", "critic", None)
    student, critic, teacher = (Role(network, adapter=name, predict=predict) for name in names)
    return Roles(student=student, critic=critic, teacher=teacher)
