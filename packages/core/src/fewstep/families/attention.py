"""Attention of transformers models, wrapped through their own `AttentionInterface`; queries and keys captured there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..errors import UnsupportedModelError

AttentionFunction = Callable[..., tuple[Any, Any]]
"""``(module, query [B,H,T,D], key [B,G,N,D], value, attention_mask, **kwargs) -> (output [B,T,H,D], weights)``."""


def wrap_attention(
    undo: ExitStack, model: Any, label: str, wrap: Callable[[AttentionFunction], AttentionFunction]
) -> None:
    """Run the attention of `model` through ``wrap(current)`` until undone.

    `wrap` must be stateless: per-call state arrives in the keyword arguments that a decoder layer passes on to its
    attention, so that two models with different settings never meet. A new name is registered beside the existing
    ones, which are never edited.

    Args:
        undo: takes the way back.
        model: a ``PreTrainedModel`` that dispatches through `AttentionInterface`.
        label: names the wrapper; one label stands for one `wrap`.

    Raises:
        UnsupportedModelError: the model runs an attention that is not in the interface, such as ``eager``.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    current = model.config._attn_implementation
    if current not in ALL_ATTENTION_FUNCTIONS:
        raise UnsupportedModelError(
            f"{type(model).__name__} runs {current!r} attention; load it with attn_implementation='sdpa'"
        )
    # "flash_attention_2" inside a name would make transformers look for that package
    name = f"fewstep-{label}-{current.replace('flash_attention_', 'fa')}"
    AttentionInterface.register(name, wrap(ALL_ATTENTION_FUNCTIONS[current]))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[current])
    undo.callback(model.set_attn_implementation, current)
    model.set_attn_implementation(name)


@dataclass
class QueryCapture:
    """Rotated queries and keys of one layer's attention, filled where attention is wrapped by `capture_queries`."""

    query: Float[Tensor, "r h n d"] = field(init=False)
    keys: Float[Tensor, "r g n d"] = field(init=False)


def capture_queries(attention: AttentionFunction) -> AttentionFunction:
    """Wrap `attention` so that it fills the `QueryCapture` it is given as ``capture=``."""

    def attend(module, query, key, value, attention_mask, *, capture: QueryCapture | None = None, **kwargs):
        if capture is not None:
            capture.query, capture.keys = query, key
        return attention(module, query, key, value, attention_mask, **kwargs)

    return attend
