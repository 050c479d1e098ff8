"""Keys and values of the preserve layers on the host, streamed layer by layer through two buffers on the device."""

from __future__ import annotations

import torch
from fewstep.families.kv_cache import GrowingLayer
from jaxtyping import Int
from torch import Tensor

from .cache import SlimCache
from .copier import Copier, Wait


class Ring:
    """Two device buffers that the streamed layers use in turn, and the copy that fills the next one."""

    def __init__(self, copier: Copier, device: torch.device) -> None:
        self.layers: list[StreamedLayer] = []
        self._copier, self._device = copier, device
        self._buffers: list[tuple[Tensor, ...]] = [(), ()]
        self._reading = 0
        self._coming: tuple[int, Wait] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the device buffers."""
        return sum(part.numel() * part.element_size() for pair in self._buffers for part in pair)

    def prefetch(self, turn: int) -> None:
        """Start copying the layer whose turn comes next, into the buffer that attention does not read."""
        layer = self.layers[turn % len(self.layers)]
        side, host = 1 - self._reading, layer.host
        if not self._buffers[side] or self._buffers[side][0].shape != host[0].shape:
            self._buffers[side] = tuple(torch.empty_like(part, device=self._device) for part in host)
        length, buffers = layer.keys.shape[2], self._buffers[side]

        def copy() -> None:
            for buffer, part in zip(buffers, host, strict=True):
                buffer[:, :, :length].copy_(part[:, :, :length], non_blocking=True)

        self._coming = (layer.turn, self._copier.start(copy))

    def take(self, turn: int) -> tuple[Tensor, ...]:
        """The buffers that hold a layer, when its copy is complete."""
        if self._coming is None or self._coming[0] != turn:
            self.cancel()
            self.prefetch(turn)
        self.cancel()  # waits
        self._reading = 1 - self._reading
        return self._buffers[self._reading]

    def cancel(self) -> None:
        """Forget a copy that is under way."""
        if self._coming is not None:
            self._coming[1]()
            self._coming = None


class StreamedLayer(GrowingLayer):
    """A layer whose tokens lie on the host; attention reads them in a buffer of the ring."""

    def __init__(self, filled: GrowingLayer, ring: Ring) -> None:
        super().__init__()
        self._ring, self.turn = ring, len(ring.layers)
        self.dtype, self.device, self.is_initialized = filled.dtype, torch.device("cpu"), True
        self.replace(filled.keys, filled.values)
        ring.layers.append(self)

    @property
    def host(self) -> tuple[Tensor, ...]:
        """Keys and values with their spare room."""
        return self._buffers

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append on the host and on the device, start the next layer's copy, return everything on the device."""
        buffers = self._ring.take(self.turn)
        start, stop = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if stop > buffers[0].shape[2]:
            super().update(key_states.cpu(), value_states.cpu())  # makes room, so the shapes differ now
            buffers = self._ring.take(self.turn)
        else:
            super().update(key_states.cpu(), value_states.cpu())
            for buffer, states in zip(buffers, (key_states, value_states), strict=True):
                buffer[:, :, start:stop] = states
        self._ring.prefetch(self.turn + 1)
        keys, values = (buffer[:, :, :stop] for buffer in buffers)
        return keys, values

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Hold exactly these, pinned where a GPU will read them."""
        super().replace(keys, values)
        if torch.cuda.is_available():
            self._buffers = tuple(part.pin_memory() for part in self._buffers)
            self._show(keys.shape[2])

    @property
    def kv_bytes(self) -> int:
        """Its share of the ring."""
        return self._ring.nbytes // len(self._ring.layers)

    @property
    def host_bytes(self) -> int:
        """Bytes of its tokens on the host."""
        return super().kv_bytes

    def select_rows(self, rows: Int[Tensor, " r"]) -> None:
        """Keep these rows of the batch, in this order."""
        self._ring.cancel()
        super().select_rows(rows)


def offload(cache: SlimCache, layers: range, copier: Copier) -> None:
    """Move `layers` of a filled cache to the host."""
    ring = Ring(copier, cache.layers[layers[0]].device)
    for i in layers:
        cache.layers[i] = StreamedLayer(cache.layers[i], ring)
