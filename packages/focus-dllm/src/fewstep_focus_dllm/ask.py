"""``fewstep run`` for diffusion language models: an answer about a document, block by block."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import torch
from fewstep.contract import Loaded
from fewstep.families.inputs import PromptInputs, tokenizer_of
from jaxtyping import Int
from torch import Tensor

from .decoding import Decoding
from .generation import Output
from .method import generation


@dataclass(frozen=True, kw_only=True)
class Ask(PromptInputs, Decoding):
    """Continue a document, or answer a question about it."""

    def __post_init__(self) -> None:
        Decoding.__post_init__(self)
        PromptInputs.__post_init__(self)

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
        self.finish(loaded.processor.decode(output.response[0], skip_special_tokens=True), method, facts)

    def tokens(self, loaded: Loaded) -> Int[Tensor, "1 n"]:
        """Prompt ids.

        Raises:
            UnsupportedModelError: the model has no tokenizer.
            ValueError: nothing was asked.
        """
        tokenizer = tokenizer_of(loaded)
        return torch.tensor([tokenizer(self.whole_prompt(tokenizer)[0], add_special_tokens=False)["input_ids"]])

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
