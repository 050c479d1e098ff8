"""Types that packages meet in: `Loaded`, and what a method or task may offer beside the one verb it must have.

Cards name these by target, so that nothing heavy is imported before it is used. ``Any`` stands for a `fewstep.Method`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

from .roofline import Measured, Plan, Workload

Weights = Literal["trained", "pretrained", "random"]
"""Origin of a model's weights; quality is never reported for ``random``."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model with what it needs to be used."""

    model: Any
    """An ``nn.Module`` in eval mode, or a ``DiffusionPipeline``."""
    name: str
    """As typed by the user; written to every row."""
    processor: Any = None
    """Tokenizer or processor; None for pipelines, which carry their own."""
    weights: Weights = "pretrained"
    """Origin of the weights."""


@runtime_checkable
class RunInputs(Protocol):
    """Inputs of ``fewstep run``: a dataclass whose fields are flags. Named by ``Card.run``."""

    def __call__(self, loaded: Loaded, method: Any) -> None:
        """Apply `method` to the loaded model, run these inputs through it, print the answer and what it cost."""


@runtime_checkable
class Fitting(Protocol):
    """Options of ``fewstep fit``: a dataclass whose fields are flags. Named by ``Card.fit``.

    Long fits show progress, keep each finished piece in a `fewstep.fitting.Journal` in `out`, and go on from it.
    """

    def __call__(self, loaded: Loaded, out: Path) -> Any:
        """Calibrate, search or prune for the loaded model; return the method, which the caller saves to `out`."""


class Describer(Protocol):
    """A function that tells what a method would do with a model, from its configuration. Named by ``Card.show``."""

    def __call__(self, config: Any, folder: Path) -> list[tuple[str, str]]:
        """Lines of name and finding, for ``fewstep show METHOD --model FOLDER``.

        Raises:
            UnsupportedModelError: the method does not know models like this.
        """


class Planner(Protocol):
    """A function that tells what a method does to the phases of a model, as pure arithmetic. Named by ``Card.plan``."""

    def __call__(self, method: Any, parts: Mapping[str, Any], work: Workload) -> Plan:
        """Cost of one request, without and with the method.

        Args:
            method: the method, with its settings; it need have no weights and need not be fitted.
            parts: configurations, see `fewstep.plan.models.Parts`.
            work: the request.

        Raises:
            UnsupportedModelError: the method does not know models like this.
            ValueError: the request does not fit the model, or the settings are not predicted.
        """


@runtime_checkable
class PlannedTask(Protocol):
    """A task whose times a plan predicts."""

    def measured(self) -> Measured:
        """The request that the task makes, and the phases that its metrics are of."""


class CalibrationBatch(TypedDict):
    """Inputs of one forward pass and the positions at which its output is compared."""

    inputs: dict[str, Any]
    """Keyword arguments of the model."""
    score_mask: Any
    """Bool tensor ``[B, T]``: True where the logits count."""


@runtime_checkable
class CalibrationTask(Protocol):
    """A task that offers calibration data: a part of its data that it never measures on."""

    def calibration(self, loaded: Loaded, samples: int, batch: int, seed: int) -> list[CalibrationBatch]:
        """`samples` samples in batches of `batch`, a function of `seed`."""
