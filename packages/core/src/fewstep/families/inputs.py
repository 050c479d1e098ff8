"""Inputs of ``fewstep run`` that model families share: a prompt with a document, and a report of what the run cost."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract import Loaded
from ..data import files
from ..errors import UnsupportedModelError
from . import chat


@dataclass(frozen=True, kw_only=True)
class PromptInputs:
    """A question, perhaps behind a document, and where the answer goes."""

    prompt: str
    """The question, or the whole prompt when there is no file."""
    prompt_file: str | None = None
    """A UTF-8 text file that comes before the question; ``-`` reads standard input."""
    chat: bool = True
    """Use the tokenizer's chat template, if it has one."""
    output: Path | None = None
    """JSON file for answer, times and sizes."""

    def __post_init__(self) -> None:
        # what cannot be read or written is said before a model loads, not after the answer
        if self.prompt_file not in (None, "-"):
            self.document()
        if self.output is not None:
            files.check_writable(self.output)

    def document(self) -> str:
        """Text of the prompt file, empty without one.

        Raises:
            BadFileError: it cannot be read, or is not UTF-8.
        """
        return files.read_text(self.prompt_file) if self.prompt_file is not None else ""

    def whole_prompt(self, tokenizer: Any) -> tuple[str, tuple[int, int]]:
        """The text that the model reads, chat template and first special token included, and the question's place.

        Returns:
            The text, and the characters in it that hold the question or what the template made of it; none without one.

        Raises:
            FewstepError: the chat template fails or drops the question.
            ValueError: there is neither a document nor a question.
        """
        document, question = self.document(), self.prompt.strip()
        if not question and not document.strip():
            raise ValueError("the prompt is empty: give --prompt, --prompt-file or both")
        before = f"{document.rstrip()}\n\n" if document else ""
        if self.chat and getattr(tokenizer, "chat_template", None):
            whole = chat.render(tokenizer, before + question)
            other = chat.render(tokenizer, before + chat.OTHER) if question not in whole else whole
        else:
            other = whole = "".join(map(tokenizer.decode, tokenizer("")["input_ids"])) + before + question
        return whole, chat.span(whole, question, other) if question else (len(whole), len(whole))

    def finish(self, answer: str, method: Any, facts: Mapping[str, Any]) -> None:
        """Print the facts, a line each, and write the JSON file where one was asked for."""
        for name, value in facts.items():
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            print(f"{name}: {shown}")
        if self.output is not None:
            everything = {"answer": answer, "method": method.name, "fields": dataclasses.asdict(method), **facts}
            files.write_text(self.output, json.dumps(everything, indent=2, ensure_ascii=False, default=str) + "\n")


def tokenizer_of(loaded: Loaded) -> Any:
    """The tokenizer of a loaded language model.

    Raises:
        UnsupportedModelError: it has none.
    """
    if not hasattr(loaded.processor, "decode"):
        raise UnsupportedModelError(f"{loaded.name} has no tokenizer")
    return loaded.processor
