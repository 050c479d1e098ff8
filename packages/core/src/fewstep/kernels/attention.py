"""Shared parts of the sparse attention kernels: the masked specification, merging, gradients, checks of inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from . import Function, Kernel

CPU_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""The operator that SDPA runs on a CPU; unlike SDPA it returns the LSE."""


def masked_attention(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g n d"],
    value: Float[Tensor, "b g n d"],
    mask: Bool[Tensor, "b ... n"],
    scale: float | None = None,
) -> tuple[Float[Tensor, "b h t d"], Float[Tensor, "b h t"]]:
    """Softmax attention over the keys where `mask` is True, and its LSE, in float32 (float64 where `query` is).

        s_j = scale <q, k_j>      lse = log sum_j exp(s_j)      o = sum_j exp(s_j - lse) v_j

    (Attention is all you need, arXiv 1706.03762, equation 1, with a scale of choice.) The mask broadcasts over heads
    and rows. Query head ``i`` reads KV head ``i // (h / g)``; `scale` is ``1 / sqrt(d)`` unless given. A row without
    keys gives 0 and an LSE of -inf. The output has the dtype of `query`.
    """
    h, g, d = query.shape[1], key.shape[1], query.shape[3]
    wide = torch.promote_types(query.dtype, torch.float32)
    scaled = query.to(wide) * (d**-0.5 if scale is None else scale)
    scores = torch.einsum("bgrtd,bgnd->bgrtn", scaled.unflatten(1, (g, h // g)), key.to(wide)).flatten(1, 2)
    scores = scores.masked_fill(~mask, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0)[..., None]).exp()
    output = torch.einsum("bgrtn,bgnd->bgrtd", weights.unflatten(1, (g, h // g)), value.to(wide)).flatten(1, 2)
    return output.to(query.dtype), lse


def merge_attention(
    outputs: Sequence[Float[Tensor, "b h t d"]], lses: Sequence[Float[Tensor, "b h t"]]
) -> tuple[Float[Tensor, "b h t d"], Float[Tensor, "b h t"]]:
    """Attention over the union of disjoint sets of keys, from the attention over each of them.

        lse = log sum_i exp(lse_i)      o = sum_i exp(lse_i - lse) o_i

    (Flash-decoding's reduction of split keys; FlashAttention, arXiv 2205.14135, section 3.1.)

    Args:
        outputs: attention over each set of keys; the result has their dtype.
        lses: logarithm of the sum of the exponentials of the scores over each set; -inf where a set is empty.

    Returns:
        Output and LSE over the union, from which further sets can be merged.

    Raises:
        ValueError: nothing to merge, or shapes do not fit, in one sentence.
    """
    if not outputs or {(*lse.shape, outputs[0].shape[-1]) for lse in lses} != {tuple(o.shape) for o in outputs}:
        shapes = f"{[tuple(o.shape) for o in outputs]} and {[tuple(lse.shape) for lse in lses]}"
        raise ValueError(f"outputs must be one or more of one shape [b, h, t, d] and lses [b, h, t], found {shapes}")
    stacked = torch.stack(tuple(lses))
    lse = stacked.logsumexp(0)
    weights = (stacked - lse.masked_fill(lse == -torch.inf, 0)).exp()
    wide = torch.stack(tuple(outputs)).to(lse.dtype)
    return (weights[..., None] * wide).sum(0).to(outputs[0].dtype), lse


def run_backend(
    kernel: Kernel,
    backend: str | None,
    tensors: tuple[Tensor, ...],
    places: Int[Tensor, "..."],
    options: Mapping[str, Any],
) -> Any:
    """Run a backend on ``(*tensors, places)``; gradients of `tensors` are those of the specification, run again.

    Without a name it is the one for their device, or the specification where they are float64.

    Raises:
        ValueError: there is no such backend.
        ImportError: the backend needs a package that is not installed.
    """
    backend = backend or kernel.exact_backend(tensors[0])
    function = kernel.function(backend)
    if backend == "naive" or not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return function(*tensors, places, **options)
    return _NaiveGradient.apply(kernel.naive, function, places, options, *tensors)


class _NaiveGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, naive: Function, fast: Function, places: Tensor, options: Mapping[str, Any], *tensors: Tensor
    ) -> Any:
        ctx.save_for_backward(places, *tensors)
        ctx.naive, ctx.options = naive, options
        return fast(*tensors, places, **options)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple:
        places, *tensors = ctx.saved_tensors
        wanted = ctx.needs_input_grad[4:]
        with torch.enable_grad():
            fresh = [tensor.detach().requires_grad_(needed) for tensor, needed in zip(tensors, wanted, strict=True)]
            output = ctx.naive(*fresh, places, **ctx.options)
        outputs = (output,) if isinstance(output, Tensor) else output
        leaves = [tensor for tensor in fresh if tensor.requires_grad]
        gradients = iter(torch.autograd.grad(outputs, leaves, outer))
        return None, None, None, None, *(next(gradients) if needed else None for needed in wanted)


def check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Refuse tensors that no attention can take.

    Raises:
        ValueError: shapes or dtypes do not fit, in one sentence.
    """
    tensors = {"query": query, "key": key, "value": value}
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    if query.ndim != 4 or key.ndim != 4 or value.shape != key.shape:
        raise ValueError(f"query must be [b, h, t, d] and keys and values [b, g, n, d], found {shapes}")
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3] or key.numel() == 0 or query.numel() == 0:
        raise ValueError(f"query and key must have one batch and one head size, none of them empty, found {shapes}")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads are not a multiple of {key.shape[1]} KV heads")
    if len({tensor.dtype for tensor in tensors.values()}) > 1 or not query.is_floating_point():
        dtypes = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise ValueError(f"all must have one floating-point dtype, found {dtypes}")


def check_places(places: Tensor, limit: int, name: str) -> None:
    """Refuse indices outside ``[-1, limit)``; on a CPU only, because looking would stall a GPU.

    Raises:
        ValueError: not integers, or one of them is out of range, in one sentence.
    """
    if places.is_floating_point() or places.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, found {places.dtype}")
    if places.device.type == "cpu" and places.numel():
        least, most = (int(bound) for bound in places.aminmax())
        if least < -1 or most >= limit:
            raise ValueError(f"{name} must lie in [-1, {limit}), found {least} to {most}")
