"""Parameters, operations and memory of a mixture of experts, from its configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedModelError
from .moe import MoeSite


@dataclass(frozen=True, kw_only=True)
class MoeSizes:
    """Numbers that the cost of a model with routed experts depends on."""

    parameters: int
    """All parameters: embeddings, head and vision tower too."""
    layers: int
    """Decoder layers, with and without experts."""
    routed: int
    """Parameters of all routed experts."""
    active: int
    """Parameters of the routed experts that one token is sent to, over all layers."""
    dense: int
    """Elements of the other matrices of the decoder layers, which every token uses."""
    attention: int
    """Products of one query token and one key token, over all layers: ``L H (d_qk + d_v)``."""

    @classmethod
    def of(cls, model: Any, sites: Sequence[MoeSite]) -> MoeSizes:
        """Read the sizes of a transformers model, which may be on the meta device, with these layers of experts."""
        decoder = model.get_decoder()
        config = decoder.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        widths = getattr(config, "qk_head_dim", width) + getattr(config, "v_head_dim", width)
        routed = sum(_size(site.experts) for site in sites)
        return cls(
            parameters=_size(model),
            layers=len(decoder.layers),
            routed=routed,
            active=sum(_size(site.experts) * site.top_k // site.count for site in sites),
            dense=sum(weight.numel() for weight in decoder.layers.parameters() if weight.ndim > 1) - routed,
            attention=len(decoder.layers) * config.num_attention_heads * widths,
        )

    def prefill_flops(self, tokens: int) -> int:
        """Floating-point operations of a prompt in the decoder layers; the head is not counted.

        2 (active + dense) T  +  L H (d_qk + d_v) T^2        half of attention is masked
        """
        return 2 * (self.active + self.dense) * tokens + self.attention * tokens**2

    def routed_share(self, tokens: int) -> float:
        """Share of the routed experts in the operations of a prompt, in [0, 1]."""
        return 2 * self.active * tokens / self.prefill_flops(tokens)

    def weight_bytes(self, element: int) -> int:
        """Bytes of all weights at `element` bytes a number."""
        return self.parameters * element

    def token_bytes(self, element: int) -> int:
        """Bytes of the decoder layers' weights that one new token reads."""
        return (self.active + self.dense) * element


def meta_model(config: Any) -> Any:
    """Build the model of a transformers configuration on the meta device: no weights are read, none allocated.

    Args:
        config: transformers' object, or the dict of a ``config.json`` whose model type transformers does not have.

    Raises:
        UnsupportedModelError: the installed transformers has no class for the architecture.
    """
    import transformers

    known = not isinstance(config, dict)
    named = (config.architectures if known else config.get("architectures")) or ["for this model"]
    model_class = getattr(transformers, named[0], None) if known else None
    if model_class is None:
        raise UnsupportedModelError(f"transformers {transformers.__version__} has no class {named[0]}")
    with torch.device("meta"):
        return model_class._from_config(config)


def describe_experts(model: Any, sites: Sequence[MoeSite]) -> list[tuple[str, str]]:
    """Describe the experts of a model and the memory of its weights, in lines of name and finding."""
    sizes, first, last = MoeSizes.of(model, sites), sites[0].layer, sites[-1].layer
    layers = f"{len(sites)} of {sizes.layers} ({first if first == last else f'{first} to {last}'})"
    memory, read = sizes.weight_bytes(2) / 1e9, sizes.token_bytes(2) / 1e9
    return [
        ("architecture", type(model).__name__),
        ("layers with experts", layers),
        ("routed experts", f"{sites[0].count} in each, {sites[0].top_k} for each token"),
        ("shared experts", "yes, they always run" if sites[0].shared else "none"),
        ("parameters", f"{sizes.parameters / 1e9:.1f} billion"),
        ("in routed experts", f"{sizes.routed / 1e9:.1f} billion"),
        ("weights in bfloat16", f"{memory:.1f} GB; a new token reads {read:.1f} GB of the decoder's"),
    ]


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
