"""Questions about facts planted in real documents, worded in several ways, in two halves like the documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from .documents import Document, Split, excerpt

_ANIMALS = ("tiger", "rabbit", "horse", "eagle", "monkey", "wolf", "camel", "goat")
_CITIES = ("Vienna", "Lisbon", "Paris", "Madrid", "Berlin", "Rome", "London", "Dublin")
_PEOPLE = {
    "tuning": ("Maria", "Peter", "Anna", "James", "Laura", "David", "Helen", "Simon"),
    "held-out": ("Clara", "Oscar", "Julia", "Henry", "Emma", "Victor", "Nora", "Felix"),
}
ANSWER_TOKENS = 6
"""Tokens of an answer that are looked at."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """A fact about the person ``{a}``, with its value ``{x}``, and a question about it."""

    name: str
    split: Split
    fact: str
    question: str
    """A question and the beginning of its answer, which the value ends."""
    values: tuple[str, ...] = ()
    """Words that the value is drawn from; empty for numbers of three digits."""


WORDINGS = (
    Wording(
        name="code",
        split="tuning",
        fact="The secret code of {a} is {x}.",
        question="The secret code of {a} is",
    ),
    Wording(
        name="room",
        split="tuning",
        fact="At the hotel, {a} is staying in room {x}.",
        question="Question: In which room is {a} staying?\nAnswer: {a} is staying in room",
    ),
    Wording(
        name="animal",
        split="tuning",
        fact="{a} likes the {x} best of all animals.",
        question="The favourite animal of {a} is the",
        values=_ANIMALS,
    ),
    Wording(
        name="price",
        split="tuning",
        fact="For the old piano {a} paid {x} dollars.",
        question="Q: How much did {a} pay for the piano?\nA: {a} paid",
    ),
    Wording(
        name="barrels",
        split="held-out",
        fact="The ship of Captain {a} carried {x} barrels of oil.",
        question="How many barrels of oil were on Captain {a}'s ship? There were",
    ),
    Wording(
        name="birthplace",
        split="held-out",
        fact="{a} was born in the city of {x}.",
        question="Q: Where was {a} born?\nA: {a} was born in",
        values=_CITIES,
    ),
    Wording(
        name="parcel",
        split="held-out",
        fact="Note: the parcel for {a} is in box number {x}.",
        question="Where is the parcel for {a}? It is in box number",
    ),
    Wording(
        name="jersey",
        split="held-out",
        fact="In the team, {a} wears a shirt with the number {x}.",
        question="{a}'s shirt has the number",
    ),
)


@dataclass(frozen=True, kw_only=True)
class PlantedFact:
    """A prompt that holds a fact, perhaps another of the same wording too, and ends in a question."""

    prompt: Int[Tensor, " n"]
    span: tuple[int, int]
    """Tokens that hold the fact that is asked for."""
    question: str
    value: str
    """What the right answer holds."""
    source: str
    """Document and wording."""

    def answered_by(self, answer: str) -> bool:
        """True when `answer` holds the value; spaces are not looked at."""
        return self.value in answer.replace(" ", "")


def ask(
    tokenizer: Any,
    document: Document,
    wording: Wording,
    *,
    length: int,
    depth: float,
    facts: int,
    generator: torch.Generator,
) -> PlantedFact:
    """A prompt of `length` tokens: an excerpt of `document` with `facts` planted in it, and a question about the last.

    The question states the facts before it: "... of Maria is 301. ... of Peter is".

    Args:
        tokenizer: of transformers.
        document: around the facts.
        wording: of the facts, from the same half as the document.
        length: tokens of the prompt.
        depth: 0 (start) to 1 (end), of the fact that is asked for; others keep away from it.
        facts: number of facts.
        generator: draws excerpt, people and values.

    Raises:
        AssetMissing: the document is not here.
        ValueError: the document is too short, or from the other half than the wording.
    """
    if wording.split != document.split:
        raise ValueError(f"{document.name} is {document.split}, and the wording {wording.name!r} is {wording.split}")
    people = _draw(_PEOPLE[document.split], facts, generator)
    values = _draw(wording.values or tuple(map(str, range(101, 1000))), facts, generator)
    known = [wording.question.format(a=person) for person in people]
    asked = "".join(f"{text} {value}.\n" for text, value in zip(known, values[:-1], strict=False)) + known[-1]
    planted = [wording.fact.format(a=person, x=value) for person, value in zip(people, values, strict=True)]
    pieces = [_tokens(tokenizer, f" {fact}\n") for fact in planted]
    question = _tokens(tokenizer, f"\n\n{asked}")
    haystack = excerpt(tokenizer, document, length - sum(map(len, [*pieces, question])), generator)
    depths = [(depth + more / facts) % 1 for more in range(1, facts + 1)]
    prompt, spans = _plant(tokenizer, haystack, pieces, depths)
    return PlantedFact(
        prompt=torch.cat([prompt, torch.tensor(question)]),
        span=spans[-1],
        question=asked,
        value=values[-1],
        source=f"{document.name}, {wording.name}",
    )


def _draw(choices: tuple[str, ...], count: int, generator: torch.Generator) -> tuple[str, ...]:
    return tuple(choices[i] for i in torch.randperm(len(choices), generator=generator)[:count].tolist())


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _plant(
    tokenizer: Any, haystack: Int[Tensor, " n"], pieces: list[list[int]], depths: list[float]
) -> tuple[Int[Tensor, " m"], list[tuple[int, int]]]:
    """`haystack` with each piece behind the end of a sentence or line nearest to its depth, and the pieces' spans."""
    decoded = [tokenizer.decode(token) for token in haystack.tolist()]
    ends = [i + 1 for i, text in enumerate(decoded) if "\n" in text or text.rstrip().endswith(".")] or [len(decoded)]
    places = [min(ends, key=lambda end: abs(end - depth * len(decoded))) for depth in depths]
    parts, spans, done, length = [], {}, 0, 0
    for i in sorted(range(len(pieces)), key=lambda i: places[i]):
        parts += [haystack[done : places[i]], torch.tensor(pieces[i])]
        length += places[i] - done
        spans[i] = (length, length + len(pieces[i]))
        length, done = spans[i][1], places[i]
    return torch.cat([*parts, haystack[done:]]), [spans[i] for i in range(len(pieces))]
