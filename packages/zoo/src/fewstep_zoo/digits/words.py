"""The closed language of moving digits: labels of clips as prompts, and back."""

from __future__ import annotations

from dataclasses import dataclass

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")
"""Clockwise in steps of 45 degrees; image rows grow downwards."""
SPEEDS = ("slow", "fast")
GRAMMAR = "DIGIT [moving [DIRECTION] [slow|fast]], for example: three moving right fast"


@dataclass(frozen=True)
class Label:
    """Digit, direction and speed of a clip, or of those that a prompt asks for; None where it leaves one open."""

    digit: int | None = None
    """0 to 9."""
    direction: int | None = None
    """Index into `DIRECTIONS`."""
    speed: int | None = None
    """Index into `SPEEDS`."""

    def prompt(self) -> str:
        """``three moving right fast``, ``three moving fast``, ``three``; the empty prompt leaves everything open."""
        if self.digit is None:
            return ""
        words = [DIRECTIONS[self.direction]] if self.direction is not None else []
        words += [SPEEDS[self.speed]] if self.speed is not None else []
        return " ".join([DIGITS[self.digit], *(["moving", *words] if words else [])])


def parse(prompt: str) -> Label:
    """Read the label that a prompt asks for.

    Raises:
        ValueError: the prompt is not of `GRAMMAR`, which the message quotes.
    """
    words = prompt.lower().split()
    if not words:
        return Label()
    digit, rest = words[0], words[1:]
    if rest[:1] == ["moving"]:
        rest = rest[1:]
    direction = DIRECTIONS.index(rest.pop(0)) if rest and rest[0] in DIRECTIONS else None
    speed = SPEEDS.index(rest.pop(0)) if rest and rest[0] in SPEEDS else None
    if digit not in DIGITS or rest:
        raise ValueError(f"{prompt!r} is no prompt for moving digits; they read: {GRAMMAR}")
    return Label(DIGITS.index(digit), direction, speed)
