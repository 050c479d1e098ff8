"""``digit-qa``: questions about canvases of digits that no training, calibration or search has seen."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from fewstep.bench import Outcome, Sample
from fewstep.contract import CalibrationBatch, Loaded
from fewstep.errors import UnsupportedModelError
from fewstep.families import moe
from fewstep.families.vlm import OTHER, PADDING, TEXT, VISION
from torch import Tensor

from . import canvas, profile
from .canvas import Asked
from .data import Conversation, conversation
from .words import ASKED, vocabulary

SHOWN = 2
"""Questions of each kind in the report."""


@dataclass(frozen=True, kw_only=True)
class DigitQA:
    """Ask about canvases of digit images that were kept for this; an answer counts when every word of it is right."""

    questions: int = 1000
    """The kinds of questions take turns."""
    batch: int = 250
    """Questions that are read at once."""

    def __post_init__(self) -> None:
        if self.questions < 1 or self.batch < 1:
            raise ValueError(f"questions and batch must be at least 1, found {self.questions} and {self.batch}")

    @torch.inference_mode()
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Read questions with their answers: every word that is predicted right is what greedy decoding would say.

        The unchanged model reads them with the fastest of transformers' own experts.

        Raises:
            UnsupportedModelError: the model does not know the words of these questions.
        """
        _check(loaded)
        drawn = canvas.draw(self.questions, "test", generator, ASKED)
        parts = [
            conversation([[one] for one in drawn.asked[at : at + self.batch]], drawn.pixels[at : at + self.batch])
            for at in range(0, self.questions, self.batch)
        ]
        pairs = moe.Pairs()
        read = [moe.fastest(loaded.model, lambda p=part: self._read(loaded.model, p, pairs)) for part in parts]
        said = [answer for part, (logits, _) in zip(parts, read, strict=True) for answer in _answers(part, logits)]
        right = [words == one.answer for words, one in zip(said, drawn.asked, strict=True)]
        kinds = [one.kind for one in drawn.asked]
        by_kind = {
            f"accuracy_{kind}": sum(r for r, k in zip(right, kinds, strict=True) if k == kind) / kinds.count(kind)
            for kind in ASKED
            if kind in kinds
        }
        return Outcome(
            seconds={"question": sum(seconds for _, seconds in read) / self.questions},
            quality={"accuracy": sum(right) / len(right), **by_kind},
            counts={
                "skipped_share": pairs.skipped(),
                "skipped_text": pairs.skipped(group=TEXT),
                "skipped_vision": pairs.skipped(group=VISION),
            },
            evidence=torch.cat([logits[part.scored()] for part, (logits, _) in zip(parts, read, strict=True)]),
            samples=_samples(drawn.asked, said, pairs),
        )

    def _read(self, model: Any, part: Conversation, pairs: moe.Pairs) -> tuple[Tensor, float]:
        inputs = {name: value.to(model.device) for name, value in part.inputs().items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        with moe.counted(model, groups(part).to(model.device)) as counted:
            began = time.perf_counter()
            logits = model(**inputs, use_cache=False).logits.float().log_softmax(-1).cpu()
            seconds = time.perf_counter() - began
        for key, (kept, every) in counted.counts.items():
            before = pairs.counts.setdefault(key, [0, 0])
            pairs.counts[key] = [before[0] + kept, before[1] + every]
        pairs.counts = {key: value for key, value in pairs.counts.items() if key[1] >= 0}
        return logits, seconds

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """Compare answers: KL(dense || method) in nats, agreement of the likeliest word, share of dense's accuracy."""
        dense, other = (o.evidence for o in (baseline, outcome) if o.evidence is not None)
        return {
            "kl": (dense.exp() * (dense - other)).sum(-1).mean().item(),
            "top1_agreement": (dense.argmax(-1) == other.argmax(-1)).float().mean().item(),
            "retained_accuracy": outcome.quality["accuracy"] / max(baseline.quality["accuracy"], 1e-9),
        }

    def small(self) -> DigitQA:
        """Return the task with a dozen questions."""
        return replace(self, questions=12, batch=12)

    def calibration(self, loaded: Loaded, samples: int, batch: int, seed: int) -> list[CalibrationBatch]:
        """Draw questions about images that are kept for calibration, for methods that are fitted to a model.

        Raises:
            UnsupportedModelError: the model does not know the words of these questions.
        """
        _check(loaded)
        generator = torch.Generator().manual_seed(seed)
        drawn = canvas.draw(samples, "calibration", generator, ASKED)
        parts = [
            conversation([[one] for one in drawn.asked[at : at + batch]], drawn.pixels[at : at + batch])
            for at in range(0, samples, batch)
        ]
        mask = vocabulary()["<|endoftext|>"]
        return [
            {
                "inputs": {
                    **part.inputs(),
                    "pixel_values": part.pixels.to(loaded.model.dtype),
                    "attention_mask": (part.ids != mask).long(),
                },
                "score_mask": part.scored(),
            }
            for part in parts
        ]


def groups(part: Conversation) -> Tensor:
    """Classify each token: 0 special, 1 text, 2 vision, -1 padding, as in `fewstep.families.vlm`."""
    ids = vocabulary()
    kind = torch.full_like(part.ids, TEXT)
    for word in ("<|vision_start|>", "<|vision_end|>", "<|im_end|>"):
        kind[part.ids == ids[word]] = OTHER
    kind[part.ids == ids["<|image_pad|>"]] = VISION
    kind[part.ids == ids["<|endoftext|>"]] = PADDING
    return kind


def _answers(part: Conversation, logits: Tensor) -> list[str]:
    """Return the likeliest words at the scored positions, without the end token that has to close them."""
    words = list(vocabulary())
    likeliest, scored, end = logits.argmax(-1), part.scored(), vocabulary()["<|im_end|>"]
    said = [row[mask].tolist() for row, mask in zip(likeliest, scored, strict=True)]
    return [" ".join(words[w] for w in row[:-1]) if row[-1] == end else "..." for row in said]


def _samples(asked: list[Asked], said: list[str], pairs: moe.Pairs) -> tuple[Sample, ...]:
    layers = sorted({layer for layer, _ in pairs.counts})
    shares = {
        name: [pairs.skipped(layer=layer, group=group) for layer in layers]
        for name, group in (("text", TEXT), ("vision", VISION))
    }
    shown = [Sample(title="pairs skipped, by layer", image=profile.png(layers, shares))]
    for number in range(min(len(asked), SHOWN * len(ASKED))):
        title = f"canvas {number + 1}: {asked[number].question} ({asked[number].answer})"
        shown.append(Sample(title=title, text=said[number]))
    return tuple(shown)


def _check(loaded: Loaded) -> None:
    tokenizer = getattr(loaded.processor, "tokenizer", None)
    if tokenizer is None or tokenizer.get_vocab() != vocabulary():
        raise UnsupportedModelError(
            f"digit-qa asks digits-qwen3-vl-moe or a model with its vocabulary, not {loaded.name}"
        )
