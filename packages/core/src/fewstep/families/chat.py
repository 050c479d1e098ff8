"""Chat templates: programs that come with a tokenizer, and may rewrite, drop or refuse what they are given."""

from __future__ import annotations

import os
from typing import Any

from ..errors import FewstepError

OTHER = "\u2603"
"""Text that is rendered in place of another one, to see what a template makes of that."""


def render(processor: Any, text: str, *, pictures: int = 0, answer: str | None = None) -> str:
    """One turn of a user, and perhaps the answer, as the chat template of a tokenizer or processor writes it.

    Templates take a text, or parts of a message, or both; a form in which the text makes no difference is not the one.

    Raises:
        FewstepError: the template fails, or drops the text, in both forms.
    """
    failed, seeing = "it drops the prompt", hasattr(processor, "image_processor")
    for parts in (True,) if pictures else (seeing, not seeing):
        try:
            whole, other = (_rendered(processor, each, parts, pictures, answer) for each in (text, OTHER))
        except Exception as error:  # a program of the checkpoint, which may raise anything
            failed = f"{type(error).__name__}: {' '.join(str(error).split())}"
            continue
        if whole != other:
            return whole
    raise FewstepError(
        f"the chat template of this model cannot write a question ({failed}); leave it out with --no-chat (chat=False)"
    )


def _rendered(processor: Any, text: str, parts: bool, pictures: int, answer: str | None) -> str:
    content: Any = [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": text}] if parts else text
    messages = [{"role": "user", "content": content}]
    messages += [{"role": "assistant", "content": answer}] if answer is not None else []
    return processor.apply_chat_template(messages, add_generation_prompt=answer is None, tokenize=False)


def span(whole: str, part: str, other: str) -> tuple[int, int]:
    """Characters of `whole` that hold `part`, or what a template made of it: upper case, escaped, within JSON.

    Args:
        whole: a rendered text.
        part: what was put into it.
        other: the text rendered with something else in place of `part`; what both share at either end is not part.
    """
    at = whole.rfind(part)
    if at >= 0:
        return at, at + len(part)
    start = len(os.path.commonprefix([whole, other]))
    behind = len(os.path.commonprefix([whole[start:][::-1], other[start:][::-1]]))
    return start, len(whole) - behind
