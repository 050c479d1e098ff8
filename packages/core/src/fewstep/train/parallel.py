"""Processes of one run: rank and device, and what they exchange."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """The processes of one run; one process alone is rank 0 of 1."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """True in the one process that writes logs and prints."""
        return self.rank == 0


def join(device: str = "cpu") -> World:
    """Take part in the process group that torchrun describes, or be alone without one."""
    size, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    if size == 1:
        return World(device=torch.device(device))
    cuda = torch.device(device).type == "cuda"
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    if cuda:
        torch.cuda.set_device(local)
    return World(dist.get_rank(), size, torch.device("cuda", local) if cuda else torch.device(device))


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_single() -> bool:
    """True where there is no other process."""
    return not dist.is_initialized() or dist.get_world_size() == 1


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def broadcast(value: int) -> int:
    """Return the number that rank 0 has, on every rank."""
    if is_single():
        return value
    shared = torch.tensor(value, device=_device())
    dist.broadcast(shared, 0)
    return int(shared)


def any_rank(flag: bool) -> bool:
    """Return, on every rank, whether `flag` is true on any."""
    if is_single():
        return flag
    shared = torch.tensor(int(flag), device=_device())
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return bool(shared)


def barrier() -> None:
    """Wait until all ranks are here."""
    if not is_single():
        dist.barrier()


def mean(values: Tensor) -> Tensor:
    """Mean over the ranks."""
    if is_single():
        return values
    shared = values.to(_device())
    dist.all_reduce(shared)
    return shared / dist.get_world_size()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of unsharded parameters by their mean over the ranks, in one exchange."""
    gradients = [weight.grad for weight in parameters if weight.grad is not None]
    if is_single() or not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
