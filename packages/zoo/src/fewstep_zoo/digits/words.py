"""The closed language of moving digits: what a prompt can say, and the ids of what it says."""

from __future__ import annotations

from dataclasses import dataclass

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")
"""Clockwise in steps of 45 degrees; image rows grow downwards."""
SPEEDS = ("slow", "fast")
GRAMMAR = "DIGIT [moving [DIRECTION] [slow|fast]], for example: three moving right fast"


@dataclass(frozen=True)
class Asked:
    """What a prompt asks for; None where it leaves the choice to the model."""

    digit: int | None = None
    """0 to 9."""
    direction: int | None = None
    """Index into `DIRECTIONS`."""
    speed: int | None = None
    """Index into `SPEEDS`."""

    def prompt(self) -> str:
        """``three moving right fast``, ``three moving fast``, ``three``; nothing asked is the empty prompt."""
        if self.digit is None:
            return ""
        said = [DIRECTIONS[self.direction]] if self.direction is not None else []
        said += [SPEEDS[self.speed]] if self.speed is not None else []
        return " ".join([DIGITS[self.digit], *(["moving", *said] if said else [])])


def parse(prompt: str) -> Asked:
    """What `prompt` asks for.

    Raises:
        ValueError: it is not of the grammar; the message says what is.
    """
    words = prompt.lower().split()
    if not words:
        return Asked()
    digit, rest = words[0], words[1:]
    if rest[:1] == ["moving"]:
        rest = rest[1:]
    direction = DIRECTIONS.index(rest.pop(0)) if rest and rest[0] in DIRECTIONS else None
    speed = SPEEDS.index(rest.pop(0)) if rest and rest[0] in SPEEDS else None
    if digit not in DIGITS or rest:
        raise ValueError(f"{prompt!r} is no prompt for moving digits; they read: {GRAMMAR}")
    return Asked(DIGITS.index(digit), direction, speed)
