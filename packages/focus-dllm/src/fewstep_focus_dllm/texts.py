"""A real text that is on every machine: the Python language reference, which ships with Python."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


@cache
def reference_manual() -> str:
    """All topics of ``pydoc_data``, about 465,000 characters of technical English."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[key] for key in sorted(topics))


def excerpt(tokenizer: Any, tokens: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """`tokens` token ids from a random place of the text, starting at a paragraph.

    Raises:
        ValueError: the text is shorter than that.
    """
    text, room = reference_manual(), 8 * tokens  # more characters than any tokenizer needs
    if len(text) <= room:
        raise ValueError(f"the text has {len(text):,} characters, too few for {tokens} tokens")
    start = int(torch.randint(len(text) - room, (1,), generator=generator))
    paragraph = text.find("\n\n", start, start + room // 4)
    start = start if paragraph < 0 else paragraph + 2
    return torch.tensor(tokenizer(text[start : start + room], add_special_tokens=False)["input_ids"][:tokens])
