"""An n-gram model of bytes with modified Kneser-Ney smoothing, a baseline of language models."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class KneserNey:
    """Interpolated modified Kneser-Ney (Chen and Goodman 1999, section 3) over bytes, exact counts."""

    def __init__(self, text: bytes, order: int = 5) -> None:
        """Count the n-grams of `text`.

        Raises:
            ValueError: `order` is not 1 to 7, or the text has fewer than 100 bytes.
        """
        if not 1 <= order <= 7 or len(text) < 100:
            raise ValueError(f"an n-gram model needs order 1 to 7 and 100 bytes, found {order} and {len(text)}")
        self.order = order
        grams, counts = np.unique(_grams(np.frombuffer(text, np.uint8), order), return_counts=True)
        self.levels: list[_Order] = []
        for n in range(order, 0, -1):
            self.levels.insert(0, _Order(grams, counts))
            # the next lower order counts in how many different contexts a gram was seen, not how often
            grams, counts = np.unique(grams % 256 ** (n - 1), return_counts=True)

    def bits(self, text: bytes) -> Array:
        """``-log2 p`` of each byte from number ``order - 1`` on, given those before it."""
        whole = _grams(np.frombuffer(text, np.uint8), self.order)
        p: Array = np.full(len(whole), 1 / 256)
        for n, level in enumerate(self.levels, 1):
            p = level.interpolated(whole % 256**n, p)
        return -np.log2(p)


class _Order:
    """Counts of one order, and the discounts that they imply."""

    def __init__(self, grams: Array, counts: Array) -> None:
        self.grams, self.counts = grams, counts
        self.contexts, start = np.unique(grams // 256, return_index=True)
        kinds = np.array([(counts == k).sum() for k in (1, 2, 3, 4)], float)
        y = kinds[0] / max(1.0, kinds[0] + 2 * kinds[1])
        d = [k - (k + 1) * y * kinds[k] / max(1.0, kinds[k - 1]) for k in (1, 2, 3)]
        self.discount = np.array([0.0, *np.clip(d, 0.0, [1, 2, 3])])
        self.total = np.add.reduceat(counts, start)
        self.freed = np.add.reduceat(self.discount[np.minimum(counts, 3)], start)

    def interpolated(self, grams: Array, lower: Array) -> Array:
        """Probabilities of the last byte of each gram, given those before it and those of the lower order."""
        seen, count = _looked_up(self.grams, self.counts, grams)
        known, total = _looked_up(self.contexts, self.total, grams // 256)
        _, freed = _looked_up(self.contexts, self.freed, grams // 256)
        own = np.where(seen, count - self.discount[np.minimum(count, 3).astype(int)], 0.0)
        return np.where(known, (own + freed * lower) / np.maximum(total, 1), lower)


def _grams(text: Array, order: int) -> Array:
    """Every run of `order` bytes as one number, the oldest byte first."""
    count = len(text) - order + 1
    grams: Array = np.zeros(count, np.int64)
    for k in range(order):
        grams = grams * 256 + text[k : k + count]
    return grams


def _looked_up(keys: Array, values: Array, wanted: Array) -> tuple[Array, Array]:
    """Mask of the wanted keys that are there, and their values, 0 for the others."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    hit = keys[at] == wanted
    return hit, np.where(hit, values[at], 0)
