"""``fewstep run`` for the methods of long prompts: a question about a document, answered as it streams."""

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
from transformers import TextStreamer

from .cache import Report
from .tasks import check_length


class TimedStreamer(TextStreamer):
    """Prints the answer as it comes and notes when its first token came."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.first = 0.0

    def put(self, value: torch.Tensor) -> None:
        """Take the next tokens; the first call brings the prompt."""
        if not self.next_tokens_are_prompt and not self.first:
            self.first = time.perf_counter()
        super().put(value)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Ask a question about a document."""

    prompt: str
    """The question, or the whole prompt when there is no file."""
    prompt_file: str | None = None
    """A UTF-8 text file that comes before the question; ``-`` reads standard input."""
    max_new_tokens: int = 128
    """Most tokens of the answer."""
    temperature: float = 0.0
    """0 answers with the likeliest tokens; above it, samples."""
    seed: int = 0
    """Of the sampling."""
    chat: bool = True
    """Use the tokenizer's chat template, if it has one."""
    output: Path | None = None
    """JSON file for answer, times and sizes."""

    def __post_init__(self) -> None:
        # what cannot be read or written is said before a model loads, not after the answer
        if self.prompt_file != "-":
            self._document()
        if self.output is not None:
            self.output.touch()

    def __call__(self, loaded: Loaded, method: Any) -> None:
        """Stream the answer, then print what it cost."""
        ids, span = self.tokens(loaded)
        check_length(loaded, ids.shape[1], self.max_new_tokens)
        if "query_span" in {f.name for f in dataclasses.fields(method)} and method.query_span is None:
            method = dataclasses.replace(method, query_span=span)
        streamer = TimedStreamer(loaded.processor)
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        with method.apply(loaded.model) as applied, torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(self.seed)
            start = time.perf_counter()
            ids = ids.to(loaded.model.device)
            full = loaded.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.max_new_tokens,
                streamer=streamer,
                pad_token_id=loaded.processor.pad_token_id or loaded.processor.eos_token_id,
                **sampling,
            )
            total = time.perf_counter() - start
            report = getattr(applied, "report", None)
        answer = loaded.processor.decode(full[0, ids.shape[1] :], skip_special_tokens=True)
        facts = self._facts(ids.shape[1], full.shape[1] - ids.shape[1], streamer.first - start, total, report)
        for line in facts.items():
            print("{}: {}".format(*line))
        if self.output is not None:
            everything = {"answer": answer, "method": method.name, "fields": dataclasses.asdict(method), **facts}
            self.output.write_text(json.dumps(everything, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def tokens(self, loaded: Loaded) -> tuple[torch.Tensor, tuple[int, int]]:
        """Prompt ids ``[1, n]`` and the span of the question, counted from the end."""
        document, question = self._document(), self.prompt.strip()
        if not question and not document.strip():
            raise ValueError("the prompt is empty: give --prompt, --prompt-file or both")
        tokenizer = loaded.processor
        if tokenizer is None:
            raise ValueError(f"{loaded.name} has no tokenizer")
        text = f"{document.rstrip()}\n\n{question}" if document else question
        if self.chat and tokenizer.chat_template:
            message = [{"role": "user", "content": text}]
            whole = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        else:
            whole = "".join(map(tokenizer.decode, tokenizer("")["input_ids"])) + text
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        after = whole[whole.rindex(question) + len(question) :] if question else ""
        behind = len(tokenizer(after, add_special_tokens=False)["input_ids"])
        asked = len(tokenizer(question, add_special_tokens=False)["input_ids"])
        return torch.tensor([ids]), (max(-(behind + asked), -len(ids)), -behind or len(ids))

    def _document(self) -> str:
        if self.prompt_file is None:
            return ""
        try:
            raw = sys.stdin.buffer.read() if self.prompt_file == "-" else Path(self.prompt_file).read_bytes()
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadFileError(f"{self.prompt_file} is not UTF-8 text (byte {error.start})") from error

    def _facts(self, prompt: int, new: int, ttft: float, total: float, report: Report | None) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "prompt tokens": prompt,
            "answer tokens": new,
            "time to first token (s)": round(ttft, 3),
            "decode (tokens/s)": round((new - 1) / (total - ttft), 2) if new > 1 else None,
        }
        if report is not None:
            facts["prompt tokens kept, by segment"] = [rows[0] for rows in report.tokens]
            facts["KV cache (bytes)"] = report.kv_bytes
            facts["KV cache on the host (bytes)"] = report.host_bytes
        return facts
