"""``fewstep run`` for the methods of this package: a question about a picture, or without one."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fewstep.errors import FewstepError
from fewstep.loaders import Loaded

from . import data


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Ask a question about a picture, or without one."""

    prompt: str
    """The question."""
    image: tuple[Path, ...] = ()
    """Pictures that come before it."""
    max_new_tokens: int = 64
    """Most tokens of the answer."""
    compare: bool = False
    """Answer with the unchanged model too."""
    output: Path | None = None
    """JSON file for the answer and what was skipped."""

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("the prompt is empty")
        if self.output is not None:
            self.output.touch()  # what cannot be written is said before a model loads

    def __call__(self, loaded: Loaded, method: Any) -> None:
        """Print the answer, then what was skipped to get it."""
        inputs = data.inputs(loaded, self.prompt, self.image)
        _known(loaded, self.prompt)
        dense = self._answer(loaded, inputs) if self.compare else None
        applied = method.apply(loaded.model)
        with applied:
            answer, seconds = self._answer(loaded, inputs)
            stats = applied.stats()
        print(answer)
        if dense:
            print(f"unchanged model: {dense[0]}")
        facts = {"seconds": round(seconds, 3), "pairs skipped": round(stats.ratio, 3)}
        facts |= {f"layer {row.pop('layer')}": {k: round(v, 3) for k, v in row.items()} for row in stats.table()}
        for name, value in facts.items():
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            print(f"{name}: {shown}")
        if self.output is not None:
            everything = {"answer": answer, "unchanged": dense and dense[0], "method": method.name, **facts}
            self.output.write_text(json.dumps(everything, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @torch.inference_mode()
    def _answer(self, loaded: Loaded, inputs: dict[str, Any]) -> tuple[str, float]:
        began = time.perf_counter()
        here = {k: v.to(loaded.model.device) for k, v in inputs.items()}
        full = loaded.model.generate(**here, max_new_tokens=self.max_new_tokens, do_sample=False)
        new = full[0, inputs["input_ids"].shape[1] :]
        return loaded.processor.decode(new, skip_special_tokens=True).strip(), time.perf_counter() - began


def _known(loaded: Loaded, prompt: str) -> None:
    """Refuse words that a tokenizer of a closed vocabulary does not have.

    Raises:
        FewstepError: some are unknown; the message names them.
    """
    tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None:
        return
    words = [word for word in prompt.split() if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]
    if words:
        raise FewstepError(f"{loaded.name} does not know {', '.join(words)}; see its README for what it can be asked")
