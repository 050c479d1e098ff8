"""How a response is decoded, whatever computes its logits: block order, steps, unmasking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Remasking = Literal["low_confidence", "margin", "entropy", "random"]


class Block(NamedTuple):
    """A decoding block: positions ``start .. end - 1`` of the whole sequence, and how many steps it has."""

    start: int
    end: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Semi-autoregressive decoding of a masked diffusion language model: blocks from left to right.

    Raises:
        ValueError: a field is out of range, or two do not fit each other.
    """

    gen_length: int = 256
    """Tokens of the response (G)."""
    block_length: int = 32
    """Tokens of a decoding block (Lb); the last block is shorter where it does not divide `gen_length`."""
    steps: int | None = None
    """Denoising steps for the whole response, spread over the blocks; default: one for each token."""
    threshold: float | None = None
    """Unmask every token that is at least this probable (Fast-dLLM's parallel decoding, tau = 0.9), and always the most
    probable one, instead of a number fixed by `steps`."""
    temperature: float = 0.0
    """0 takes the likeliest token; above it, Gumbel noise in float64 samples."""
    remasking: Remasking = "low_confidence"
    """What counts as confidence: probability of the token, its margin over the second, negative entropy, or chance."""
    eos_bias: float = 0.0
    """Added to the logits of end-of-sequence tokens; negative for longer answers."""
    stop_at_eos: bool = True
    """Stop a sequence when an end-of-sequence token stands and nothing before it is masked."""
    seed: int = 0
    """Of sampling and of random remasking."""

    def __post_init__(self) -> None:
        for name in ("gen_length", "block_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more, found {self.temperature}")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is a probability in (0, 1], found {self.threshold}")
        if self.threshold is not None and self.remasking != "low_confidence":
            raise ValueError(f"threshold compares probabilities, which remasking={self.remasking!r} does not give")

    def blocks(self, prompt: int) -> list[Block]:
        """The blocks of a response behind `prompt` tokens; every block has at least one step."""
        steps = self.steps or self.gen_length
        found = []
        for start in range(0, self.gen_length, self.block_length):
            end = min(start + self.block_length, self.gen_length)
            share = steps * end // self.gen_length - steps * start // self.gen_length
            found.append(Block(prompt + start, prompt + end, max(1, share)))
        return found


def unmask_count(masked: int, steps: int, step: int) -> int:
    """Tokens that step `step` of `steps` unmasks of a block with `masked` masks: the first ones take the remainder.

    Steps beyond the last one, which only a prediction that missed needs, unmask one each.
    """
    return masked // steps + (step < masked % steps) if step < steps else 1
