"""`Method`: a frozen dataclass of hyper-parameters with one verb, `apply`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from . import hub
from .applied import Applied
from .cards import Card


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A change to a model that makes it cheaper, as a value.

    Subclasses are ``@dataclass(frozen=True, kw_only=True)``: the fields are the hyper-parameters, validated in
    ``__post_init__``. Saving, loading and the hub are derived from the fields. A field made with
    `fewstep.hub.weights` holds the path of a safetensors file that travels with the method.
    """

    name: ClassVar[str]
    """The name of its card."""
    seams: ClassVar[frozenset[str]]
    """Parts of a model that it occupies: ``"hidden-tokens"``, ``"attention"``, ``"experts"``, ``"scheduler"``, ..."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Fields by their names in earlier versions, so that what those saved still loads: ``{"old": "new"}``."""
    formats: ClassVar[tuple[Card, ...]] = ()
    """Formats of other programs that ``fewstep export`` writes. A target is a dataclass of options that is called with
    the method and a folder, and returns notes for the user."""

    @abstractmethod
    def apply(self, model: Any) -> Applied:
        """Change `model` (an ``nn.Module`` or a ``DiffusionPipeline``) in place; the result undoes it.

        Raises:
            UnsupportedModelError: this model cannot be changed so; it is left as it was.
            SeamConflictError: another method is applied where this one would act.
        """

    def identity(self) -> Self | None:
        """The setting at which outputs equal those of the unchanged model, or None where there is none.

        The benchmark runs it first and prints no speed-up when the outputs differ.
        """
        return None

    def save_pretrained(self, folder: hub.PathLike) -> None:
        """Write ``fewstep.json`` (all fields), the weights, and a model card to `folder`."""
        hub.save(self, folder)

    @classmethod
    def from_pretrained(cls, source: hub.PathLike) -> Self:
        """Read what `save_pretrained` wrote, from a folder or a hub id.

        Called on `Method` itself it finds the class by the name in the file. The name of a model stands for the method
        that comes with it: ``SGMD.from_pretrained("digits-wan")``.

        Raises:
            BadFileError: not a saved method, or one of another class.
        """
        return hub.load(cls, source)

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Save to a temporary folder and upload it; returns the address of the repository."""
        return hub.push(self, repo_id, private=private)
