"""FSDP2 sharding of the roles' networks over all ranks, and gathering them again."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from . import adapters
from .parallel import World
from .roles import Roles


def shard(roles: Roles, world: World, dtype: torch.dtype) -> None:
    """Shard every network with FSDP2, one unit for each block, and run it in `dtype`; gradients are summed in float32.

    The roles' predictions stay float32; timesteps are never rounded to `dtype`.
    """
    # predictions are views of what blocks return; nothing here changes them in place
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    mesh = init_device_mesh(world.device.type, (world.size,))
    # inputs are cast by the roles: FSDP2 would round the timesteps too
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for network in roles.networks():
        for unit in (*blocks(network), network):
            # also what is outside the blocks: a student that only simulates must not stay unsharded
            fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for role in roles.values():
        role.dtype = dtype


def blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks that a diffusers model says it is made of."""
    names = getattr(network, "_no_split_modules", None) or []
    return [module for module in network.modules() if type(module).__name__ in names]


def meta_copy(network: nn.Module) -> nn.Module:
    """Copy `network` with weights that take no memory; made before sharding, filled by `gather_state`."""
    empty: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
        for weight in network.parameters()
    }
    return copy.deepcopy(network, empty)


def gather_state(network: nn.Module, empty: nn.Module, world: World) -> nn.Module | None:
    """Gather a sharded network into `empty` on the main rank, on the CPU; None on the others. All ranks call it."""
    state = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not world.is_main:
        return None
    empty.load_state_dict(state, strict=True, assign=True)
    return empty


def recompute(roles: Roles) -> None:
    """Recompute the activations of all networks in the backward pass."""
    for network in roles.networks():
        network.enable_gradient_checkpointing(adapters.checkpointed(network))  # type: ignore[operator]
