"""Language models that read pictures, and those that do not: modalities of their tokens, and their inputs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int8
from torch import Tensor

from ..contract import CalibrationBatch, Loaded
from ..data.files import read_lines
from ..data.images import read_image
from ..errors import BadFileError, FewstepError, UnsupportedModelError, check_least
from . import chat
from .inputs import PromptInputs

PADDING, OTHER, TEXT, VISION = -1, 0, 1, 2
"""Modality of a token; `OTHER` are special tokens."""
NAMES = {TEXT: "text", VISION: "vision"}
"""Modalities that methods tell apart, by the name that reports and rows give them."""
_VISION_IDS = ("image_token_id", "video_token_id", "image_token_index", "media_placeholder_token_id")
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "vision_start_token_id", "vision_end_token_id")


def check(model: Any) -> Any:
    """Return the text decoder of a model that reads pictures.

    Raises:
        UnsupportedModelError: its configuration names no picture token.
    """
    if not hasattr(model, "config") or not vision_ids(model):
        raise UnsupportedModelError(f"{type(model).__name__} reads no pictures: its configuration names no image token")
    return model.get_decoder()


def _ids(model: Any, names: tuple[str, ...]) -> tuple[int, ...]:
    """Token ids that the configurations of `model` hold under these names."""
    text = getattr(model.config, "text_config", None)
    ids: set[int] = set()
    for config in (model.config, text, getattr(model, "generation_config", None)):
        for name in names:
            value = getattr(config, name, None)
            ids |= {value} if isinstance(value, int) else set(value or ())
    return tuple(sorted(ids))


def special_ids(model: Any) -> tuple[int, ...]:
    """Return the ids of begin, end, padding and the tokens around pictures, as far as the configurations name them."""
    return _ids(model, _SPECIAL_IDS)


def special_ids_of(loaded: Loaded) -> tuple[int, ...]:
    """Return `special_ids` of a loaded model and those that its tokenizer calls special, without placeholders."""
    tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
    listed = getattr(tokenizer, "all_special_ids", None) or ()
    return tuple(sorted({*special_ids(loaded.model), *listed} - set(vision_ids(loaded.model))))


def vision_ids(model: Any) -> tuple[int, ...]:
    """Return the ids of the placeholders of pictures and videos; empty for a model that reads text alone."""
    return _ids(model, _VISION_IDS)


def modality(kwargs: Mapping[str, Any], special: tuple[int, ...], vision: tuple[int, ...]) -> Int8[Tensor, "b s"]:
    """Classify each token of a call of the model: -1 padding, 0 other (special tokens), 1 text, 2 vision.

    Args:
        kwargs: keyword arguments of the call: ``input_ids`` or ``inputs_embeds``, and where they are given
            ``mm_token_type_ids`` (0 text, 1 image, 2 video) and ``attention_mask`` (0 padding).
        special: ids of special tokens.
        vision: ids of placeholders.

    Raises:
        ValueError: there are embeddings instead of ids, and nothing that says which are vision.
    """
    ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
    types, tokens = kwargs.get("mm_token_type_ids"), ids if ids is not None else embeds
    if tokens is None:
        raise ValueError("the model was called without input_ids and inputs_embeds: modalities cannot be told")
    if ids is None and types is None and vision:
        raise ValueError(
            "with inputs_embeds and no input_ids pass mm_token_type_ids (0 text, 1 image, 2 video): text and vision "
            "tokens are treated differently"
        )
    kind = torch.full(tokens.shape[:2], TEXT, dtype=torch.int8, device=tokens.device)
    if types is not None and types.shape == kind.shape:
        kind[types > 0] = VISION
    if ids is not None:
        kind[torch.isin(ids, torch.tensor(special, device=ids.device))] = OTHER
        kind[torch.isin(ids, torch.tensor(vision, device=ids.device))] = VISION
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        kind[mask[:, -kind.shape[1] :] == 0] = PADDING
    return kind


def inputs(
    loaded: Loaded, prompt: str, pictures: Sequence[Path] = (), answer: str | None = None, *, template: bool = True
) -> dict[str, Any]:
    """Make the keyword arguments of the model for one prompt, its pictures, and the answer where there is one.

    Args:
        loaded: a model with its tokenizer or processor.
        prompt: the question.
        pictures: files of pictures that come before it.
        answer: text of the model's turn; None leaves the turn open for generation.
        template: use the chat template, where the model has one.

    Raises:
        BadFileError: a picture cannot be read.
        FewstepError: the model has no processor, reads no pictures, or none without its template; or that fails.
    """
    processor = loaded.processor
    if processor is None:
        raise FewstepError(f"{loaded.name} has no tokenizer or processor")
    if pictures and not hasattr(processor, "image_processor"):
        raise FewstepError(f"{loaded.name} reads no pictures; leave the image out")
    if pictures and not template:
        raise FewstepError("the chat template says where pictures stand: leave out --no-chat (chat=False), or them")
    images = [read_image(path) for path in pictures]
    tokenizer = getattr(processor, "tokenizer", processor)
    if template and (getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)):
        text = chat.render(processor, prompt, pictures=len(images), answer=answer)
    else:
        text = prompt if answer is None else f"{prompt} {answer}"
    more = {"images": images} if images else {}
    return dict(processor(text=[text], return_tensors="pt", **more))


def calibration_of_file(path: Path, loaded: Loaded, samples: int, seed: int) -> list[CalibrationBatch]:
    """Draw samples from a JSON-lines file: ``{"prompt": ..., "answer": ..., "image": path}``; the image may be absent.

    Args:
        path: the file; images are relative to it.
        loaded: a model with its tokenizer or processor.
        samples: most samples, each a batch of its own.
        seed: of the draw.

    Raises:
        BadFileError: a line, or an image that it names, cannot be read.
        FewstepError: the model has no processor, or reads no pictures.
    """
    lines = [(number, line) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(seed))[:samples].tolist()
    drawn = (lines[position] for position in order)
    return [_scored_answer(path, number, line, loaded) for number, line in drawn]


def _scored_answer(path: Path, number: int, line: str, loaded: Loaded) -> CalibrationBatch:
    try:
        sample = json.loads(line)
        prompt, answer = str(sample["prompt"]), str(sample["answer"])
        pictures = [path.parent / sample["image"]] if sample.get("image") else []
    except (ValueError, KeyError, TypeError) as error:
        raise BadFileError(f'{path}:{number} is no {{"prompt": ..., "answer": ...}}: {error}') from error
    asked = inputs(loaded, prompt, pictures)
    answered = inputs(loaded, prompt, pictures, answer)
    start, length = asked["input_ids"].shape[1], answered["input_ids"].shape[1]
    if length <= start:
        raise BadFileError(f"{path}:{number} has an empty answer")
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[:, start - 1 : length - 1] = True  # the first token of the answer is predicted at the last one of the prompt
    return {"inputs": answered, "score_mask": mask}


@dataclass(frozen=True, kw_only=True)
class Ask(PromptInputs):
    """Ask a question about a picture, a document, or neither."""

    image: tuple[Path, ...] = ()
    """Pictures that come before the question."""
    max_new_tokens: int = 64
    """Most tokens of the answer."""
    compare: bool = False
    """Answer with the unchanged model too."""

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("the prompt is empty")
        check_least(self, max_new_tokens=1)
        super().__post_init__()

    def __call__(self, loaded: Loaded, method: Any) -> None:
        """Print the answer, then its time and the method's counts.

        Raises:
            BadFileError: a picture or the document cannot be read.
            FewstepError: the model has no processor, reads no pictures, or does not know a word of the prompt.
        """
        document = self.document()
        prompt = f"{document.rstrip()}\n\n{self.prompt}" if document else self.prompt
        arguments = inputs(loaded, prompt, self.image, template=self.chat)
        _refuse_unknown_words(loaded, prompt)
        dense, before = self._answer(loaded, arguments) if self.compare else (None, 0.0)
        with method.apply(loaded.model) as applied:
            answer, seconds = self._answer(loaded, arguments)
            facts = {"seconds": round(seconds, 3), **applied.stats()}
        print(answer)
        if dense is not None:
            facts = {"unchanged model": dense, "its seconds": round(before, 3)} | facts
        self.finish(answer, method, facts)

    @torch.inference_mode()
    def _answer(self, loaded: Loaded, arguments: dict[str, Any]) -> tuple[str, float]:
        start = time.perf_counter()
        here = {name: value.to(loaded.model.device) for name, value in arguments.items()}
        full = loaded.model.generate(**here, max_new_tokens=self.max_new_tokens, do_sample=False)
        new = full[0, arguments["input_ids"].shape[1] :]
        return loaded.processor.decode(new, skip_special_tokens=True).strip(), time.perf_counter() - start


def _refuse_unknown_words(loaded: Loaded, prompt: str) -> None:
    """Refuse words that a tokenizer of a closed vocabulary lacks.

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
