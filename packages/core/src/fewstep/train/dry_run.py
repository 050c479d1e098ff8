"""Memory of a run from configurations alone: the real objective on the meta device, and its tensors counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..families.chunk_cache import ChunkCache
from ..flow import Latent
from .loop import generator
from .objective import Batch
from .recipe import Job, Recipe
from .roles import Predict, velocity_of
from .sharding import blocks

RANKS = (1, 8, 32)
LORA_RANK = 64
"""Rank of the LoRA variant of a recipe that trains all weights."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Memory of one way to run a recipe."""

    name: str
    """``all weights`` or ``LoRA``, with or without recomputation."""
    weights: int
    """Bytes of all distinct networks."""
    training: int
    """Bytes of gradients, optimiser moments and averages."""
    gathered: int
    """Bytes that FSDP2 holds unsharded on each rank for a moment: two blocks of each network and what is outside."""
    activations: int
    """Bytes that the largest phase keeps for its backward pass, for one micro-batch."""

    def bytes(self, ranks: int) -> int:
        """On each of `ranks` ranks, with weights and what is trained sharded over them."""
        if ranks == 1:
            return self.weights + self.training + self.activations
        return (self.weights + self.training) // ranks + self.gathered + self.activations


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """Parameters, latent shape and memory of a run."""

    roles: Mapping[str, tuple[int, int]]
    """Parameters that each role runs, and those among them that it trains."""
    latent: tuple[int, ...]
    """Shape of one latent."""
    variants: tuple[MemoryEstimate, ...]


def dry_run(recipe: Recipe) -> DryRun:
    """Count parameters and memory of a recipe; nothing is loaded, downloaded or allocated.

    Raises:
        FewstepError: the sizes of its models are not known here.
    """
    job = recipe.skeleton()
    trained = recipe.optimisers()
    roles = {
        name: (_count(role.network), _total(role.parameters()) if name in trained else 0)
        for name, role in job.objective.roles.items()
    }
    variants = tuple(_variant(name, other) for name, other in _variants(recipe))
    return DryRun(roles=roles, latent=job.data.shape, variants=variants)


def _variants(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    ranks: dict[str, dict[str, Any]] = {"all weights": {}}
    if hasattr(recipe, "lora_rank"):
        rank = recipe.lora_rank or LORA_RANK
        ranks = {"all weights": {"lora_rank": 0}, f"LoRA of rank {rank}": {"lora_rank": rank}}
    for name, fields in ranks.items():
        for again in (False, True):
            more = ", activations recomputed" if again else ""
            yield name + more, dataclasses.replace(recipe, recompute=again, **fields)


def _variant(name: str, recipe: Recipe) -> MemoryEstimate:
    job = recipe.skeleton()
    roles = job.objective.roles
    trained = {role: _total(roles[role].parameters()) for role in recipe.optimisers()}
    moments = 2 * sum(trained.values()) + (next(iter(trained.values())) if recipe.ema else 0)
    half = 2 if recipe.precision == "bfloat16" else 4
    return MemoryEstimate(
        name=name,
        weights=sum(weight.nbytes for network in roles.networks() for weight in network.parameters()),
        training=4 * (max(trained.values()) + moments),
        gathered=half * sum(map(_gathered, roles.networks())),
        activations=max(_activations(recipe, job, role) for role in dict.fromkeys(job.objective.phases(0))),
    )


def _activations(recipe: Recipe, job: Job, role: str) -> int:
    """Bytes that the losses of one phase keep, found by running them on the meta device."""
    roles, kept = job.objective.roles, _Kept()
    if recipe.precision == "bfloat16":
        for weight in (weight for network in roles.networks() for weight in network.parameters()):
            weight.data = weight.data.to(torch.bfloat16)
    for one in roles.values():
        one.predict, one.recomputed = _unless_idle(one.predict), kept.later
    for network in roles.networks():
        kept.ignore(network)
        if recipe.recompute and getattr(network, "_supports_gradient_checkpointing", False):
            network.enable_gradient_checkpointing(kept.block)  # type: ignore[operator]
    cond, x0 = job.data.draw(recipe.batch, generator("dry run"))
    batch = Batch(
        cond=cond,
        uncond=job.data.uncond,
        x0=x0,
        shape=job.data.shape,
        generator=generator("dry run"),
        shared=generator("dry run"),
    )
    with roles.updating(role), _Flash(), kept.counting():
        job.objective.losses(role, batch, 0)
        kept.run_last()
    return kept.bytes()


def _unless_idle(predict: Predict | None) -> Predict:
    """Skip the network where no gradient is recorded: nothing of it is kept."""

    def run(network: nn.Module, noisy: Latent, sigma: Tensor, cond: Any) -> Latent:
        if not torch.is_grad_enabled():
            return torch.empty_like(noisy)
        return (predict or velocity_of(network))(network, noisy, sigma, cond)

    return run


class _Kept:
    """Counts the distinct tensors that autograd keeps, but not weights."""

    def __init__(self) -> None:
        self.storages: dict[int, Any] = {}
        self.weights: set[int] = set()
        self.largest = 0
        self.inner: _Kept | None = None
        self.last: tuple[Any, ...] = ()

    def ignore(self, network: nn.Module) -> None:
        self.weights |= {weight.untyped_storage()._cdata for weight in network.parameters()}

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights:
            self.storages[storage._cdata] = storage  # held, so that its number is not given away again
        return tensor

    def block(self, block: Callable[..., Any], *args: Any) -> Any:
        """Instead of recomputation: its inputs are kept, and the largest block once more while it is recomputed.

        A block within a block counts towards the outer one.
        """
        if self.inner is not None:
            return self.inner.block(block, *args)
        self.inner = inner = _Kept()
        inner.weights = self.weights
        with inner.counting():
            out = block(*args)
        self.inner = None
        for value in torch.utils._pytree.tree_leaves(args):
            if isinstance(value, Tensor) and value.requires_grad:
                self.add(value)
            elif isinstance(value, ChunkCache):
                for held in value.tensors():
                    self.add(held)
        self.largest = max(self.largest, inner.bytes())
        return out

    def later(self, velocity: Callable[..., Any], noisy: Tensor, *args: Any) -> Tensor:
        """Instead of recomputing a whole call of a network: of several, which are like each other, the last is run."""
        self.last = velocity, noisy, *args
        return torch.empty_like(noisy, dtype=torch.float32).requires_grad_()

    def run_last(self) -> None:
        """Count the last call that `later` was given."""
        if self.last:
            self.block(*self.last)

    @contextmanager
    def counting(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor):
            yield

    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values()) + self.largest


class _Flash(TorchFunctionMode):
    """On the meta device torch picks the attention that keeps all scores; GPUs run the one that does not."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]


def _count(network: nn.Module) -> int:
    return _total(network.parameters())


def _total(weights: Any) -> int:
    return sum(weight.numel() for weight in weights)


def _gathered(network: nn.Module) -> int:
    sizes = [_count(block) for block in blocks(network)]
    return _count(network) - sum(sizes) + 2 * max(sizes, default=0)
