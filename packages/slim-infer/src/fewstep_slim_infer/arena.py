"""KV of one slim segment while decoding: every known block on the host, the active ones in slots on the device.

A layer's buffer is laid out as ``[slots | ragged tail | generated tokens]``. Keys are already rotated and the decode
query comes last, so attention does not depend on the order of slots and reads the buffer as it lies.
"""

from __future__ import annotations

from functools import partial

import torch
from fewstep.families.kv_cache import GrowingLayer
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .block_index import BlockIndex
from .copier import Copier, Wait


class Arena:
    """Slots of one segment: which block lies where, and the swaps between steps (the paper's Algorithm 1).

    Blocks go by their original number in the prompt. Prompt keys and values never change, so the host copy of a block
    is always valid: nothing is written back, and rows that follow one beam share it.

    Args:
        layers: the segment's cache layers, filled by the prefill, rows padded on the left.
        pads: padding columns of each row.
        blocks: the full blocks that the layers hold, for each row, ascending.
        slots: most blocks on the device, for each row.
        block: tokens in a block.
        overlap: share of the wanted blocks that must be active already for a swap to be skipped (gamma).
        index: chooses blocks for a local query.
        copier: runs the copies.
    """

    def __init__(
        self,
        layers: list[GrowingLayer],
        pads: list[int],
        *,
        blocks: list[list[int]],
        slots: list[int],
        block: int,
        overlap: float,
        index: BlockIndex,
        copier: Copier,
    ) -> None:
        self.block, self.overlap, self.layers, self.index, self._copier = block, overlap, layers, index, copier
        self._slots = [min(n, len(own)) for n, own in zip(slots, blocks, strict=True)]
        self.active: list[list[int]] = [own[:n] for own, n in zip(blocks, self._slots, strict=True)]
        """Block in each slot, for each row."""
        self.swaps = self.bytes_moved = 0
        self._waits: dict[int, Wait] = {}
        self._host = [self._to_host(row, pad, own) for row, (pad, own) in enumerate(zip(pads, blocks, strict=True))]
        tokens = layers[0].keys.shape[2]
        self._tails = [tokens - pad - len(own) * block for pad, own in zip(pads, blocks, strict=True)]
        for i, layer in enumerate(layers):
            layer.replace(*self._compact(i))
            layer.before_use = partial(self.wait, layer)
        self.valid = self._valid()

    @property
    def host_bytes(self) -> int:
        """Bytes of the host copies; what beams share counts once."""
        known = {id(kv): kv for row in self._host for kv in row.values()}
        return sum(kv.numel() * kv.element_size() for kv in known.values())

    def wait(self, layer: GrowingLayer) -> None:
        """Return when no copy into `layer` is under way."""
        if wait := self._waits.pop(id(layer), None):
            wait()

    def choose(self, row: int, query: Float[Tensor, "h d"]) -> list[int]:
        """Blocks that `row` wants for this local query, as many as it has slots."""
        return self.index.choose(row, query, self._slots[row])

    def want(self, row: int, blocks: list[int]) -> None:
        """Make `blocks` (known ones) the active ones of `row`, unless enough of them are already."""
        active, wanted = self.active[row], set(blocks)
        if not wanted or len(wanted & set(active)) / len(wanted) >= self.overlap:
            return
        free = [slot for slot, block in enumerate(active) if block not in wanted]
        moves = list(zip(free, sorted(wanted - set(active)), strict=False))
        if not moves:
            return
        for slot, block in moves:
            active[slot] = block
        self.swaps += 1
        for i, layer in enumerate(self.layers):
            self.wait(layer)  # an earlier swap that nobody read yet
            self._waits[id(layer)] = self._copier.start(lambda i=i: self._load(i, row, moves))
        self.bytes_moved += sum(self._host[row][b].numel() * self._host[row][b].element_size() for _, b in moves)

    def missing(self, row: int, blocks: list[int]) -> list[int]:
        """Those of `blocks` that have no keys and values in this segment yet."""
        return [block for block in blocks if block not in self._host[row]]

    def learn(self, row: int, block: int, keys_values: Float[Tensor, "layers 2 g b d"]) -> None:
        """Add a block that was computed after the prefill."""
        self._host[row][block] = keys_values.cpu()

    def numbers(self, row: int, first_tail: int) -> Int[Tensor, " n"]:
        """Token number of every column of ``[slots | tail]`` of one row; the tail starts with token `first_tail`."""
        slots = torch.tensor(self.active[row])[:, None] * self.block + torch.arange(self.block)
        return torch.cat([slots.flatten(), first_tail + torch.arange(self._tails[row])])

    def select_rows(self, order: list[int]) -> None:
        """Rows follow their beams; the layers' own buffers are reordered by the cache."""
        for layer in self.layers:
            self.wait(layer)
        self.index.select_rows(order)
        self._host = [dict(self._host[r]) for r in order]
        self._slots = [self._slots[r] for r in order]
        self._tails = [self._tails[r] for r in order]
        self.active = [list(self.active[r]) for r in order]
        self.valid = None if self.valid is None else self.valid[order]

    def _load(self, i: int, row: int, moves: list[tuple[int, int]]) -> None:
        layer = self.layers[i]
        for slot, block in moves:
            span = slice(slot * self.block, (slot + 1) * self.block)
            layer.keys[row, :, span].copy_(self._host[row][block][i, 0], non_blocking=True)
            layer.values[row, :, span].copy_(self._host[row][block][i, 1], non_blocking=True)

    def _to_host(self, row: int, pad: int, blocks: list[int]) -> dict[int, Float[Tensor, "layers 2 g b d"]]:
        """Block-major copy: a block of all layers is one contiguous piece."""
        first, stop = self.layers[0], pad + len(blocks) * self.block
        shape = (len(blocks), len(self.layers), 2, first.keys.shape[1], self.block, first.keys.shape[3])
        host = torch.empty(shape, dtype=first.dtype, pin_memory=first.device.type == "cuda")
        for i, layer in enumerate(self.layers):
            for j, states in enumerate((layer.keys, layer.values)):
                host[:, i, j] = states[row, :, pad:stop].unflatten(1, (len(blocks), self.block)).transpose(0, 1)
        return dict(zip(blocks, host, strict=True))

    def _compact(self, i: int) -> list[Float[Tensor, "r g n d"]]:
        """Keys and values of layer `i` as ``[slots | tail]``; zeros where a row has fewer slots or a shorter tail."""
        layer, slots = self.layers[i], max(self._slots) * self.block
        rows, heads, _, dim = layer.keys.shape
        compact = []
        for j, states in enumerate((layer.keys, layer.values)):
            out = torch.zeros((rows, heads, slots + max(self._tails), dim), dtype=layer.dtype, device=layer.device)
            for row, (active, tail) in enumerate(zip(self.active, self._tails, strict=True)):
                for slot, block in enumerate(active):
                    out[row, :, slot * self.block : (slot + 1) * self.block] = self._host[row][block][i, j]
                out[row, :, out.shape[2] - tail :] = states[row, :, states.shape[2] - tail :]
            compact.append(out)
        return compact

    def _valid(self) -> Bool[Tensor, "r n"] | None:
        """Which columns of ``[slots | tail]`` are real; None when all are."""
        slots, tail = max(self._slots) * self.block, max(self._tails)
        column = torch.arange(slots + tail)
        filled = torch.tensor(self._slots)[:, None] * self.block
        valid = (column < filled) | (column >= slots + tail - torch.tensor(self._tails)[:, None])
        return None if valid.all() else valid.to(self.layers[0].device)
