"""Keys and values of one slim segment while decoding: every block on the host, the active ones on the device."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from einops import rearrange
from fewstep.families.kv_cache import GrowingLayer
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .select import Candidates
from .transfer import Copier, Wait


class ResidentBlocks:
    """Slots of one segment, the block in each, and the swaps between decode steps (Algorithm 1 of arXiv:2508.06447).

    A layer's buffer is laid out as ``[slots | ragged tail | generated tokens]``. Keys are already rotated and the
    decode query comes last, so attention does not depend on the order of slots and reads the buffer as it lies.

    Blocks go by their original number in the prompt. Prompt keys and values never change, so the host copy of a block
    is always valid: nothing is written back, and rows that follow one beam share it.

    Args:
        layers: the segment's cache layers, filled by the prefill, rows padded on the left.
        pads: padding columns of each row.
        candidates: blocks that each row chooses from.
        blocks: the full blocks that the layers hold, for each row, ascending.
        slots: most blocks on the device, for each row.
        settings: a `SlimInfer` whose every field is filled in.
        copier: runs the copies.
    """

    def __init__(
        self,
        layers: list[GrowingLayer],
        pads: list[int],
        candidates: list[Candidates],
        *,
        blocks: list[list[int]],
        slots: list[int],
        settings: Any,
        copier: Copier,
    ) -> None:
        self.layers, self.candidates, self._settings, self._copier = layers, candidates, settings, copier
        self.block: int = settings.block
        self._slots = [min(n, len(own)) for n, own in zip(slots, blocks, strict=True)]
        self.active: list[list[int]] = [own[:n] for own, n in zip(blocks, self._slots, strict=True)]
        """Block in each slot, for each row."""
        self.swaps = self.bytes_moved = 0
        self._waits: dict[int, Wait] = {}
        self._host = [self._to_host(row, pad, own) for row, (pad, own) in enumerate(zip(pads, blocks, strict=True))]
        tokens = layers[0].keys.shape[2]
        self._tails = [tokens - pad - len(own) * self.block for pad, own in zip(pads, blocks, strict=True)]
        for i, layer in enumerate(layers):
            layer.replace(*self._slots_and_tail(layer, pads))
            layer.before_use = partial(self.wait, i)
        self.valid = self._valid()
        """Real columns of ``[slots | tail]``; None when all are real."""

    @property
    def host_bytes(self) -> int:
        """Bytes of the host copies; copies that beams share count once."""
        distinct = {id(kv): kv for row in self._host for kv in row.values()}
        return sum(kv.nbytes for kv in distinct.values())

    def wait(self, i: int) -> None:
        """Return when no copy into layer `i` is under way."""
        if wait := self._waits.pop(i, None):
            wait()

    def choose(self, row: int, query: Float[Tensor, "h d"]) -> list[int]:
        """Candidates that `row` wants for this local query, as many as it has slots."""
        tails = max(self._settings.tail_blocks - (self._tails[row] > 0), 0)  # a ragged tail is outside the slots
        return self.candidates[row].choose(query, self._slots[row], self._settings, tails)

    def activate(self, row: int, blocks: list[int]) -> None:
        """Make `blocks` (with keys and values here) the active ones of `row`, unless enough of them are already.

        ::

            |wanted & active| / |wanted| >= gamma:  keep the active ones        (Algorithm 1)
        """
        active, wanted = self.active[row], set(blocks)
        if not wanted or len(wanted & set(active)) / len(wanted) >= self._settings.overlap:
            return
        free = [slot for slot, block in enumerate(active) if block not in wanted]
        moves = list(zip(free, sorted(wanted - set(active)), strict=False))
        if not moves:
            return
        for slot, block in moves:
            active[slot] = block
        self.swaps += 1
        for i in range(len(self.layers)):
            self.wait(i)  # an earlier swap that nobody read yet
            self._waits[i] = self._copier.start(partial(self._load, i, row, moves))
        self.bytes_moved += sum(self._host[row][block].nbytes for _, block in moves)

    def missing(self, row: int, blocks: list[int]) -> list[int]:
        """Those of `blocks` that have no keys and values in this segment yet."""
        return [block for block in blocks if block not in self._host[row]]

    def add(self, row: int, block: int, keys_values: Float[Tensor, "layers 2 g b d"]) -> None:
        """Add a block that was computed after the prefill."""
        self._host[row][block] = keys_values.cpu()

    def numbers(self, row: int, first_tail: int) -> Int[Tensor, " n"]:
        """Token number of every column of ``[slots | tail]`` of one row; the tail starts with token `first_tail`."""
        slots = torch.tensor(self.active[row])[:, None] * self.block + torch.arange(self.block)
        return torch.cat([slots.flatten(), first_tail + torch.arange(self._tails[row])])

    def select_rows(self, order: list[int]) -> None:
        """Rows follow their beams; the layers' own buffers are reordered by the cache."""
        for i in range(len(self.layers)):
            self.wait(i)
        self.candidates = [self.candidates[r] for r in order]
        self._host = [dict(self._host[r]) for r in order]
        self._slots = [self._slots[r] for r in order]
        self._tails = [self._tails[r] for r in order]
        self.active = [list(self.active[r]) for r in order]
        self.valid = None if self.valid is None else self.valid[order]

    def _load(self, i: int, row: int, moves: list[tuple[int, int]]) -> None:
        layer = self.layers[i]
        for slot, block in moves:
            for states, copy in zip((layer.keys, layer.values), self._host[row][block][i], strict=True):
                states[row, :, slot * self.block : (slot + 1) * self.block].copy_(copy, non_blocking=True)

    def _to_host(self, row: int, pad: int, blocks: list[int]) -> dict[int, Float[Tensor, "layers 2 g b d"]]:
        """Block-major copy: a block of all layers is one contiguous piece."""
        first, count = self.layers[0], len(blocks)
        shape = (count, len(self.layers), 2, first.keys.shape[1], self.block, first.keys.shape[3])
        host = torch.empty(shape, dtype=first.dtype, pin_memory=first.device.type == "cuda")
        for i, layer in enumerate(self.layers):
            for j, states in enumerate((layer.keys, layer.values)):
                own = states[row, :, pad : pad + count * self.block]
                host[:, i, j] = rearrange(own, "g (n b) d -> n g b d", b=self.block)
        return dict(zip(blocks, host, strict=True))

    def _slots_and_tail(self, layer: GrowingLayer, pads: list[int]) -> list[Float[Tensor, "r g n d"]]:
        """Keys and values of a layer; zeros where a row has fewer slots or a shorter tail."""
        slots = max(self._slots) * self.block
        rows, heads, _, dim = layer.keys.shape
        compact = []
        for states in (layer.keys, layer.values):
            out = torch.zeros((rows, heads, slots + max(self._tails), dim), dtype=layer.dtype, device=layer.device)
            for row, (pad, filled, tail) in enumerate(zip(pads, self._slots, self._tails, strict=True)):
                out[row, :, : filled * self.block] = states[row, :, pad : pad + filled * self.block]
                out[row, :, out.shape[2] - tail :] = states[row, :, states.shape[2] - tail :]
            compact.append(out)
        return compact

    def _valid(self) -> Bool[Tensor, "r n"] | None:
        slots, tail = max(self._slots) * self.block, max(self._tails)
        column = torch.arange(slots + tail)
        filled = torch.tensor(self._slots)[:, None] * self.block
        valid = (column < filled) | (column >= slots + tail - torch.tensor(self._tails)[:, None])
        return None if valid.all() else valid.to(self.layers[0].device)
