"""``fewstep run`` for diffusion language models: an answer about a document, block by block."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fewstep.errors import BadFileError
from fewstep.loaders import Loaded
from jaxtyping import Int
from torch import Tensor

from .decoding import Decoding
from .generation import Output
from .method import generation


@dataclass(frozen=True, kw_only=True)
class Ask(Decoding):
    """Continue a document, or answer a question about it."""

    prompt: str
    """The question, or the whole prompt when there is no file."""
    prompt_file: str | None = None
    """A UTF-8 text file that comes before the question; ``-`` reads standard input."""
    chat: bool = True
    """Use the tokenizer's chat template, if it has one."""
    output: Path | None = None
    """JSON file for answer, times and sizes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # what cannot be read or written is said before a model loads, not after the answer
        if self.prompt_file != "-":
            self._document()
        if self.output is not None:
            self.output.touch()

    def __call__(self, loaded: Loaded, method: Any) -> None:
        """Stream finished blocks, then print what they cost."""
        ids = self.tokens(loaded).to(loaded.model.device)
        decoding = Decoding(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Decoding)})
        with method.apply(loaded.model):
            start = time.perf_counter()
            output = generation(loaded.model)(ids, decoding=decoding, on_block=Printer(loaded.processor))
            total = time.perf_counter() - start
        print(flush=True)
        facts = self._facts(ids.shape[1], total, output)
        for line in facts.items():
            print("{}: {}".format(*line))
        if self.output is not None:
            answer = loaded.processor.decode(output.response[0], skip_special_tokens=True)
            everything = {"answer": answer, "method": method.name, "fields": dataclasses.asdict(method), **facts}
            self.output.write_text(json.dumps(everything, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def tokens(self, loaded: Loaded) -> Int[Tensor, "1 n"]:
        """Prompt ids.

        Raises:
            ValueError: nothing was asked, or the model has no tokenizer.
        """
        document, question = self._document(), self.prompt.strip()
        if not question and not document.strip():
            raise ValueError("the prompt is empty: give --prompt, --prompt-file or both")
        tokenizer: Any = loaded.processor
        if not hasattr(tokenizer, "decode"):
            raise ValueError(f"{loaded.name} has no tokenizer")
        text = f"{document.rstrip()}\n\n{question}" if document else question
        if self.chat and getattr(tokenizer, "chat_template", None):
            message = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])

    def _document(self) -> str:
        if self.prompt_file is None:
            return ""
        try:
            raw = sys.stdin.buffer.read() if self.prompt_file == "-" else Path(self.prompt_file).read_bytes()
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadFileError(f"{self.prompt_file} is not UTF-8 text (byte {error.start})") from error

    def _facts(self, prompt: int, total: float, output: Output) -> dict[str, Any]:
        stats = output.stats
        facts: dict[str, Any] = {
            "prompt tokens": prompt,
            "response tokens": output.response.shape[1],
            "seconds": round(total, 3),
            "full passes": stats.refreshes,
            "seconds in full passes": round(sum(stats.refresh_seconds), 3),
            "cached steps": len(stats.step_seconds),
        }
        if stats.step_seconds:
            facts["seconds in cached steps"] = round(sum(stats.step_seconds), 3)
            facts["positions computed, of each cached step"] = round(sum(stats.rows) / len(stats.rows), 1)
        if stats.kept:
            facts["prompt tokens read in sparse layers"] = round(sum(stats.kept) / len(stats.kept), 1)
        if stats.unmasked:
            facts["tokens predicted by confidence"] = round(stats.coverage, 3)
        return facts


class Printer:
    """Prints each block of the first sequence when it is finished."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.tokens = tokenizer, []
        self.printed = 0

    def __call__(self, block: Int[Tensor, "b l"]) -> None:
        """Print what is new; a character that is split between blocks comes with the second."""
        self.tokens += block[0].tolist()
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True).rstrip("\ufffd")
        print(text[self.printed :], end="", flush=True)
        self.printed = len(text)
