"""Options that several verbs share, and the model and method that they name."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .. import hub, plugins
from ..bench.settings import available_cores, check_threads
from ..cards import Card
from ..contract import Loaded
from ..errors import FewstepError
from ..loaders import load
from ..method import Method
from .flags import Group, peek


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model, and how it runs."""

    model: str
    """A name from `fewstep list`, a local folder, or a hub id."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of weights and activations."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto takes the GPU where there is one."""
    threads: int = field(default_factory=available_cores)
    """CPU threads of torch."""

    def load(self) -> Loaded:
        """Load the model.

        Raises:
            FewstepError: no such model, or damaged files.
            ValueError: no such device.
        """
        import torch

        check_threads(self.threads)
        torch.set_num_threads(self.threads)
        return load(self.model, dtype=self.dtype, device=chosen_device(self.device))


@dataclass(frozen=True, kw_only=True)
class MethodModelOptions(ModelOptions):
    """The model, how it runs, and a saved method."""

    method_from: Path | None = None
    """Folder (or hub id) of a saved or fitted method, used instead of the method's flags."""


def chosen_device(device: str) -> str:
    """The device that ``--device`` names, and the GPU where there is one for ``auto``.

    Raises:
        ValueError: no such device.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch {torch.__version__} finds no CUDA device here")
    return device


def named(verb: str, words: list[str], kind: str, cards: dict[str, Card]) -> tuple[Card, list[str]]:
    """The card that the first word names, and the other words; without a name ``--help`` prints what there is.

    Raises:
        UnknownNameError: no card of that name.
        FewstepError: there is no name.
    """
    known = ", ".join(cards) or "none is installed"
    if not words or words[0].startswith("-"):
        if set(words) & {"-h", "--help"}:
            print(f"usage: fewstep {verb} {kind.upper()} [flags]\n\n{kind}s: {known}")
            print(f"`fewstep {verb} {kind.upper()} --help` lists the flags of one")
            raise SystemExit(0)
        raise FewstepError(f"`fewstep {verb}` needs the name of a {kind} first; installed: {known}")
    return plugins.find(cards, words[0], kind), words[1:]


def method_group(card: Card, words: list[str], model: str | None = None) -> Group:
    """The flags of the method itself; hidden where a saved one is used.

    Defaults are those of the method that comes with the model (of ``--model``, or `model`), where one does.
    """
    cls, model = card.load(), model or peek(words, "--model") or ""
    comes = hub.shipped(model, card.name) is not None
    hidden = peek(words, "--method-from") is not None
    return Group(card.name, cls, "method", hidden, default=(lambda: cls.from_pretrained(model)) if comes else None)


def chosen_method(card: Card, options: MethodModelOptions, parsed: Any) -> Method:
    """The method of the flags, or the saved one.

    Raises:
        FewstepError: nothing is saved there, or another method.
    """
    if options.method_from is None:
        return parsed
    return card.load().from_pretrained(options.method_from)


def quiet(words: Sequence[str] = ()) -> None:
    """Make warnings one line each, and hide what libraries say of their work; call it before transformers is imported.

    Bars stay on a terminal where the model that `words` name is to be downloaded.
    """
    warnings.showwarning = _one_line
    logging.basicConfig(format="fewstep: %(message)s", level=logging.WARNING)
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    model = peek(words, "--model") or ""
    if not sys.stderr.isatty() or "/" not in model or Path(model).expanduser().is_dir():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")


def _one_line(message: Warning | str, category: type[Warning], *_args: object, **_kwargs: object) -> None:
    print(f"fewstep: {category.__name__}: {' '.join(str(message).split())}", file=sys.stderr)
