"""The closed language of panning worlds: motion and digits of a clip as a prompt, and back."""

from __future__ import annotations

from dataclasses import dataclass

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = ("right", "down", "left", "up")
"""Ways in which the window moves over the world: what is seen moves the other way."""
SPEEDS = ("slowly", "fast")
COLOURS = ("red", "green", "blue", "yellow", "white")
GRAMMAR = "[pan] [right|down|left|up] [slowly|fast] [with COLOUR DIGIT [and COLOUR DIGIT]]"
WORDS = ("pan", *DIRECTIONS, *SPEEDS, "with", "and", *COLOURS, *DIGITS)


@dataclass(frozen=True)
class Scene:
    """Motion and digits of a clip, or those that a prompt asks for; None where it leaves one open."""

    direction: int | None = None
    """Index into `DIRECTIONS`."""
    speed: int | None = None
    """Index into `SPEEDS`."""
    sprites: tuple[tuple[int, int], ...] | None = None
    """Colour and digit of each sprite, one or two."""

    def prompt(self) -> str:
        """``pan right slowly with red seven and blue two``; what is open is left out."""
        words = ["pan"] if self.direction is not None or self.speed is not None else []
        words += [DIRECTIONS[self.direction]] if self.direction is not None else []
        words += [SPEEDS[self.speed]] if self.speed is not None else []
        for number, (colour, digit) in enumerate(self.sprites or ()):
            words += ["and" if number else "with", COLOURS[colour], DIGITS[digit]]
        return " ".join(words)


def parse(prompt: str) -> Scene:
    """Read the scene that a prompt asks for.

    Raises:
        ValueError: the prompt is not of `GRAMMAR`, which the message quotes.
    """
    words = prompt.lower().replace(",", " ").split()
    if words[:1] == ["pan"]:
        words = words[1:]
    direction = DIRECTIONS.index(words.pop(0)) if words and words[0] in DIRECTIONS else None
    speed = SPEEDS.index(words.pop(0)) if words and words[0] in SPEEDS else None
    sprites: list[tuple[int, int]] = []
    while len(words) >= 3 and words[0] == ("and" if sprites else "with") and len(sprites) < 2:
        if words[1] not in COLOURS or words[2] not in DIGITS:
            break
        sprites.append((COLOURS.index(words[1]), DIGITS.index(words[2])))
        words = words[3:]
    if words:
        raise ValueError(f"{prompt!r} is no prompt for panning worlds; they read: {GRAMMAR}")
    return Scene(direction, speed, tuple(sprites) or None)
