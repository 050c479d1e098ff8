"""Bits per byte of ``tiny-llada`` on held-out text, and of n-gram models of the same training text.

``python -m fewstep_zoo.dllm.quality`` prints the table of the README.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from . import text
from .diffusion import bound, masked_nats
from .ngram import KneserNey
from .text import Kind, TextCrops

RATES = (0.05, 0.15, 0.3, 0.5)
"""Share of tokens that are masked."""
LN2 = 0.6931471805599453


def pieces(kind: Kind, length: int, count: int, seed: int = 7) -> Int[Tensor, "b n"]:
    """Draw pieces of held-out text ``[count, length]``, the same for the same seed."""
    crops = TextCrops(lengths=(length,), english=float(kind == "english"), split="held-out")
    return crops.draw(count, torch.Generator().manual_seed(seed))[0]


def of_model(model: Any, tokens: Int[Tensor, "b n"], draws: int = 4) -> dict[str, float]:
    """Bits per byte of the model: ``bound``, and at each rate of `RATES` the mean over masked bytes."""
    source = torch.Generator().manual_seed(0)
    metrics = {"bound": bound(model, tokens, source, draws)}
    for rate in RATES:
        bits, count = 0.0, 0
        for _ in range(draws):
            masked = torch.rand(tokens.shape, generator=source) < rate
            with torch.no_grad():
                bits += float(masked_nats(model, tokens, masked).sum()) / LN2
            count += int(masked.sum())
        metrics[f"masked {rate:.0%}"] = bits / count
    return metrics


def of_ngrams(ngrams: list[KneserNey], tokens: Int[Tensor, "b n"], draws: int = 4) -> dict[str, float]:
    """The same of n-gram models of order 1, 2, ...: ``left`` given all true bytes to the left, then as `of_model`.

    At a mask rate, each masked byte is predicted from the unmasked ones directly before it, by the order that fits.
    """
    tables = [_table(ngrams, bytes(row.tolist())) for row in tokens]
    order, source = len(ngrams), torch.Generator().manual_seed(0)
    metrics = {"left": float(np.mean([table[-1, order - 1 :].mean() for table in tables]))}
    for rate in RATES:
        bits: list[np.ndarray] = []
        for _ in range(draws):
            masked = (torch.rand(tokens.shape, generator=source) < rate).numpy()
            for table, hidden in zip(tables, masked, strict=True):
                at = np.flatnonzero(hidden)
                before = np.maximum.accumulate(np.where(hidden, np.arange(len(hidden)), -1))
                visible = np.where(at > 0, at - 1 - before[at - 1], 0)
                bits.append(table[np.minimum(visible, order - 1), at])
        metrics[f"masked {rate:.0%}"] = float(np.concatenate(bits).mean())
    return metrics


def _table(ngrams: list[KneserNey], piece: bytes) -> np.ndarray:
    """Bits of each byte by each model ``[order, n]``; NaN where a model needs more bytes than there are."""
    rows = [np.concatenate([np.full(n, np.nan), ngram.bits(piece)]) for n, ngram in enumerate(ngrams)]
    return np.stack(rows)


def fitted(order: int = 5) -> list[KneserNey]:
    """N-gram models of all training text, of order 1 to `order`."""
    whole = text.corpus("english", "train") + b"\f" + text.corpus("source", "train")
    return [KneserNey(whole, n) for n in range(1, order + 1)]


def main() -> None:
    """Print the table."""
    from .load import tiny

    model, ngrams = tiny().model, fitted()
    for kind in ("english", "source"):
        tokens = pieces(kind, 256, 64)
        for name, metrics in (("tiny-llada", of_model(model, tokens)), ("5-gram", of_ngrams(ngrams, tokens))):
            print(kind, name, ", ".join(f"{metric} {bits:.2f}" for metric, bits in metrics.items()))


if __name__ == "__main__":
    main()
