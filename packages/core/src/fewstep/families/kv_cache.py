"""KV cache layers that grow in place, for any transformers model with a `Cache`."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.models.llama.modeling_llama import LlamaAttention

ARGUMENT = "cache" if "cache" in inspect.signature(LlamaAttention.forward).parameters else "past_key_values"
"""Name of a cache in arguments and outputs of the installed transformers: ``cache`` from 5.24 on."""
_FIRST_ROOM = 64


class GrowingLayer(DynamicLayer):
    """Keys and values ``[rows, kv heads, tokens, dim]`` as views of a buffer whose spare room doubles when it is full.

    `DynamicLayer` concatenates, and so copies the whole prompt for every generated token.
    """

    def __init__(self) -> None:
        super().__init__()
        self._room = _FIRST_ROOM
        self.before_use: Callable[[], object] | None = None
        """Called before the buffers are read or written: waits for copies into them that are under way."""

    def lazy_initialization(self, key_states: Float[Tensor, "r g n d"], value_states: Float[Tensor, "r g n d"]) -> None:
        """Note dtype and device, which transformers from 5.24 on no longer does."""
        super().lazy_initialization(key_states, value_states)
        self.dtype, self.device = key_states.dtype, key_states.device

    def update(
        self, key_states: Float[Tensor, "r g n d"], value_states: Float[Tensor, "r g n d"], *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Append and return everything cached."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.replace(key_states, value_states)
        else:
            if self.before_use is not None:
                self.before_use()
            start, stop = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
            if stop > self._buffers[0].shape[2]:
                self._room = max(2 * self._room, key_states.shape[2])
                self.replace(self.keys, self.values)
            for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
                buffer[:, :, start:stop] = states
            self._show(stop)
        return self.keys, self.values

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Hold exactly these, with room for more."""
        length = keys.shape[2]
        shape = (*keys.shape[:2], length + self._room, keys.shape[3])
        self._buffers = tuple(torch.empty(shape, dtype=keys.dtype, device=keys.device) for _ in range(2))
        for buffer, states in zip(self._buffers, (keys, values), strict=True):
            buffer[:, :, :length] = states
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    @property
    def kv_bytes(self) -> int:
        """Bytes of its tokens where the model runs."""
        return 2 * self.keys.numel() * self.keys.element_size() if self.is_initialized else 0

    @property
    def host_bytes(self) -> int:
        """Bytes of its tokens in host memory beside the device."""
        return 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens.

        Raises:
            ValueError: the number is positive.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove={tokens_to_remove}: negative, as many tokens as are forgotten")
        if self.is_initialized:
            self._show(self.keys.shape[2] + tokens_to_remove)

    def select_rows(self, rows: Int[Tensor, " r"]) -> None:
        """Keep these rows of the batch, in this order; a row may come several times."""
        if self.is_initialized:
            rows = rows.to(self.keys.device)
            self.replace(self.keys.index_select(0, rows), self.values.index_select(0, rows))

    def reset(self) -> None:
        """Forget everything."""
        self.__init__()


def growing(cache: Cache) -> Cache:
    """Turn a filled `DynamicCache` into one of `GrowingLayer`; other caches are returned as they are.

    A benchmark's baseline should not pay for a copy of the whole prompt at each token either.
    """
    if type(cache) is not DynamicCache:
        return cache
    layers = []
    for old in cache.layers:
        layer = GrowingLayer()
        layer.update(old.keys, old.values)
        layers.append(layer)
        old.keys = old.values = None
    return Cache(layers=layers)


def cache_sizes(cache: Cache) -> dict[str, float]:
    """Bytes of keys and values, and tokens that a layer caches on average: ``kv_bytes``, ``tokens_per_layer``."""
    keys: list[Tensor] = [layer.keys for layer in cache.layers]
    return {
        "kv_bytes": float(sum(2 * k.nbytes for k in keys)),
        "tokens_per_layer": sum(k.shape[2] for k in keys) / len(keys),
    }
