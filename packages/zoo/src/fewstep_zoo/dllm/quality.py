"""What ``tiny-llada`` is worth on held-out text, beside an n-gram model of the same training text.

``python -m fewstep_zoo.dllm.quality`` prints the table of the README.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from . import text
from .diffusion import bound, masked_nats
from .ngram import KneserNey
from .text import Crops, Kind

RATES = (0.05, 0.15, 0.3, 0.5)
"""Share of tokens that are masked."""
LN2 = 0.6931471805599453


def pieces(kind: Kind, length: int, count: int, seed: int = 7) -> Int[Tensor, "b n"]:
    """Pieces of held-out text ``[count, length]``, the same for the same seed."""
    crops = Crops(lengths=(length,), english=float(kind == "english"), split="held-out")
    return crops.draw(count, torch.Generator().manual_seed(seed))[0]


def of_model(model: Any, tokens: Int[Tensor, "b n"], draws: int = 4) -> dict[str, float]:
    """Bits per byte: ``bound``, and at each rate of `RATES` the mean over masked bytes."""
    source = torch.Generator().manual_seed(0)
    found = {"bound": bound(model, tokens, source, draws)}
    for rate in RATES:
        bits, count = 0.0, 0
        for _ in range(draws):
            masked = torch.rand(tokens.shape, generator=source) < rate
            with torch.no_grad():
                bits += float(masked_nats(model, tokens, masked).sum()) / LN2
            count += int(masked.sum())
        found[f"masked {rate:.0%}"] = bits / count
    return found


def of_ngram(ngram: KneserNey, tokens: Int[Tensor, "b n"]) -> float:
    """Bits per byte of the same pieces, given the true bytes to the left (and none of those to the right)."""
    whole = [ngram.bits(bytes(row.tolist())) for row in tokens]
    return float(sum(bits.sum() for bits in whole) / sum(len(bits) for bits in whole))


def fitted(order: int = 5) -> KneserNey:
    """An n-gram model of all training text."""
    return KneserNey(text.corpus("english", "train") + b"\f" + text.corpus("source", "train"), order)


def main() -> None:
    """Print the table."""
    from .load import tiny

    model, ngram = tiny().model, fitted()
    for kind in ("english", "source"):
        tokens = pieces(kind, 256, 128)
        told = {**of_model(model, tokens), "5-gram": of_ngram(ngram, tokens)}
        print(kind, " ".join(f"{name} {bits:.3f}" for name, bits in told.items()))


if __name__ == "__main__":
    main()
