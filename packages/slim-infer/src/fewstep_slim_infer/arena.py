"""KV of one slim segment while decoding: every surviving block on the host, the active ones in slots on the device.

A layer's buffer is laid out as ``[slots | ragged tail | generated tokens]``. Keys are already rotated and the decode
query comes last, so attention does not depend on the order of slots and reads the buffer as it lies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from fewstep.kernels.unit_score import unit_score
from jaxtyping import Bool, Float
from torch import Tensor

from .copier import Copier, Wait
from .select import top_blocks

if TYPE_CHECKING:
    from .cache import GrowingLayer
    from .options import Score


class Arena:
    """Slots of one segment: which block lies where, and the swaps between steps (the paper's Algorithm 1).

    Args:
        layers: the segment's cache layers, filled by the prefill, rows padded on the left.
        pads: padding columns of each row.
        slots: blocks on the device, for each row.
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
        slots: list[int],
        block: int,
        overlap: float,
        index: BlockIndex,
        copier: Copier,
    ) -> None:
        tokens = layers[0].keys.shape[2]
        self.block, self.overlap, self.layers, self.index, self._copier = block, overlap, layers, index, copier
        self._full = [(tokens - pad) // block for pad in pads]
        self._slots = [min(s, n) for s, n in zip(slots, self._full, strict=True)]
        self.active: list[list[int]] = [list(range(s)) for s in self._slots]
        """Block in each slot, for each row; numbered among the segment's surviving full blocks."""
        self.swaps = self.bytes_moved = 0
        self._waits: dict[int, Wait] = {}
        self._host = [self._to_host(layer, pads) for layer in layers]
        for layer, host in zip(layers, self._host, strict=True):
            layer.replace(*self._compact(layer, host, pads))
            layer.arena = self
        self.valid = self._valid(tokens, pads)

    @property
    def host_bytes(self) -> int:
        """Bytes of the host copies."""
        return sum(host.numel() * host.element_size() for host in self._host)

    def wait(self, layer: GrowingLayer) -> None:
        """Return when no copy into `layer` is under way."""
        if wait := self._waits.pop(id(layer), None):
            wait()

    def step(self, query: Float[Tensor, "r h d"]) -> None:
        """Choose blocks for the local query of every row, and swap where too few of them are active."""
        for row, own in enumerate(query):
            self.want(row, self.index.choose(row, own, self._slots[row]))

    def want(self, row: int, blocks: list[int]) -> None:
        """Make `blocks` (ascending) the active ones of `row`, unless enough of them are already."""
        active = self.active[row]
        if not blocks:  # a prompt shorter than one block has only its tail
            return
        if len(set(blocks) & set(active)) / len(blocks) >= self.overlap:
            return
        wanted = set(blocks)
        free = [slot for slot, block in enumerate(active) if block not in wanted]
        moves = list(zip(free, sorted(wanted - set(active)), strict=False))
        for slot, block in moves:
            active[slot] = block
        if not moves:
            return
        self.swaps += 1
        for layer, host in zip(self.layers, self._host, strict=True):
            self.wait(layer)  # an earlier swap that nobody read yet
            self._waits[id(layer)] = self._copier.start(lambda la=layer, ho=host: self._load(la, ho, row, moves))
            self.bytes_moved += len(moves) * host[row, 0].numel() * host.element_size()

    def select_rows(self, order: list[int]) -> None:
        """Rows follow their beams; the layers' own buffers are reordered by the cache."""
        for layer in self.layers:
            self.wait(layer)
        self.index.select_rows(order)
        self._host = [host[order] for host in self._host]
        self._full = [self._full[r] for r in order]
        self._slots = [self._slots[r] for r in order]
        self.active = [list(self.active[r]) for r in order]
        self.valid = None if self.valid is None else self.valid[order]

    def _load(self, layer: GrowingLayer, host: Tensor, row: int, moves: list[tuple[int, int]]) -> None:
        for slot, block in moves:
            span = slice(slot * self.block, (slot + 1) * self.block)
            layer.keys[row, :, span].copy_(host[row, block, 0], non_blocking=True)
            layer.values[row, :, span].copy_(host[row, block, 1], non_blocking=True)

    def _to_host(self, layer: GrowingLayer, pads: list[int]) -> Float[Tensor, "r n 2 g b d"]:
        """Block-major copy of every full block: one block is one contiguous piece."""
        rows, heads, _, dim = layer.keys.shape
        shape = (rows, max(self._full), 2, heads, self.block, dim)
        host = torch.zeros(shape, dtype=layer.dtype, pin_memory=layer.device.type == "cuda")
        for r, (pad, full) in enumerate(zip(pads, self._full, strict=True)):
            for i, states in enumerate((layer.keys, layer.values)):
                blocks = states[r, :, pad : pad + full * self.block].unflatten(1, (full, self.block))
                host[r, :full, i] = blocks.transpose(0, 1)
        return host

    def _compact(self, layer: GrowingLayer, host: Tensor, pads: list[int]) -> tuple[Tensor, Tensor]:
        """Keys and values as ``[slots | tail]``, rows with fewer slots or a shorter tail zero-padded in between."""
        rows, heads, tokens, dim = layer.keys.shape
        slots, tail = max(self._slots), max(self._tails(tokens, pads))
        shape = (rows, heads, slots * self.block + tail, dim)
        compact = tuple(torch.zeros(shape, dtype=layer.dtype, device=layer.device) for _ in range(2))
        for i, (states, out) in enumerate(zip((layer.keys, layer.values), compact, strict=True)):
            for r, active in enumerate(self.active):
                out[r, :, : len(active) * self.block] = host[r, active, i].transpose(0, 1).flatten(1, 2)
                if own := self._tails(tokens, pads)[r]:
                    out[r, :, -own:] = states[r, :, -own:]
        return compact

    def _tails(self, tokens: int, pads: list[int]) -> list[int]:
        return [(tokens - pad) % self.block for pad in pads]

    def _valid(self, tokens: int, pads: list[int]) -> Bool[Tensor, "r n"] | None:
        """Which columns of ``[slots | tail]`` are real; None when all are."""
        tails = self._tails(tokens, pads)
        slots, tail = max(self._slots), max(tails)
        column = torch.arange(slots * self.block + tail)
        valid = torch.stack(
            [
                (column < s * self.block) | (column >= slots * self.block + tail - t)
                for s, t in zip(self._slots, tails, strict=True)
            ]
        )
        return None if valid.all() else valid.to(self.layers[0].device)


class BlockIndex:
    """Unit keys of a segment's surviving full blocks, from which each decode step chooses what to read.

    Args:
        units: mean keys ``[kv heads, units, dim]`` for each row.
        per_block: units in a block.
        score: how a block is scored.
        sinks: first blocks that are always chosen.
        tails: last blocks that are always chosen, for each row.
    """

    def __init__(
        self, units: list[Float[Tensor, "g m d"]], *, per_block: int, score: Score, sinks: int, tails: list[int]
    ) -> None:
        self._units, self._per_block, self._score, self._sinks, self._tails = units, per_block, score, sinks, tails

    def choose(self, row: int, query: Float[Tensor, "h d"], blocks: int) -> list[int]:
        """The `blocks` best of `row` for this local query, ascending."""
        scores = unit_score(query, self._units[row], block=self._per_block, unit=1, score=self._score)
        index = torch.arange(scores.numel(), device=scores.device)
        forced = (index < self._sinks) | (index >= scores.numel() - self._tails[row])
        return top_blocks(scores, blocks, forced).tolist()

    def select_rows(self, order: list[int]) -> None:
        """Rows follow their beams."""
        self._units = [self._units[r] for r in order]
        self._tails = [self._tails[r] for r in order]
