"""`WanStudent`: run a Wan pipeline with a few-step student's weights, its steps, and without guidance."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from .. import hub
from ..applied import Applied
from ..cards import Card
from ..errors import BadFileError
from ..families import wan
from ..flow import TRAIN_STEPS, StepGrid, even_steps
from ..method import Method
from . import lightx2v
from .checkpoints import SUFFIXES
from .few_steps import replace_weights, run_few_steps
from .wan_files import read, write
from .weights import StudentWeights


@dataclass(frozen=True, kw_only=True)
class WanStudent(Method):
    """A few-step student of a Wan pipeline; methods that train such students derive from it and name their paper.

    Applied to a ``WanPipeline``: the transformer gets the student's weights, the scheduler runs exactly the steps that
    the student was trained on, and every call of the pipeline makes that many steps without guidance, whatever number
    of steps and guidance scale it asks for. The weights that were there wait in host memory.

    Raises:
        ValueError: the steps or the shift are impossible.
    """

    seams: ClassVar[frozenset[str]] = frozenset({"transformer-weights", "scheduler", "guidance"})
    formats: ClassVar[tuple[Card, ...]] = (
        Card(
            name="diffusers",
            summary="a pipeline folder that diffusers loads alone",
            target="fewstep.students.export:DiffusersFolder",
        ),
        Card(name="lora", summary="a LoRA for pipe.load_lora_weights", target="fewstep.students.export:PeftLora"),
        Card(
            name="lightx2v",
            summary="weights or LoRA in native names, with the configuration of LightX2V",
            target="fewstep.students.export:LightX2V",
        ),
        Card(name="comfy", summary="model or LoRA in native names for ComfyUI", target="fewstep.students.export:Comfy"),
    )

    weights: Path | None = hub.weights()
    """Safetensors file of the student, index of several, or folder: all weights or a LoRA, in the names of diffusers,
    PEFT, LightX2V, ComfyUI or kohya's trainers; or a checkpoint of training (``.pt``).
    Default: the pipeline's own weights, where they are a student's already."""
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    """Raw steps before the shift, evenly spaced from 1000; one number below 1000 is a count: 2 means 1000 and 500."""
    shift: float = 5.0
    """Shift of the steps: timesteps 1000, 937.5, 833.3, 625 with the default steps."""
    strength: float = 1.0
    """Share of a LoRA's change that is added to the weights."""
    size: tuple[int, int, int] | None = field(default=None, compare=False)
    """Frames, height and width of the videos that the student was trained on, which `fewstep run` makes by default."""

    def __post_init__(self) -> None:
        if len(self.steps) == 1 and 0 < self.steps[0] < TRAIN_STEPS:
            object.__setattr__(self, "steps", even_steps(self.steps[0]))
        _ = self.grid  # an impossible grid fails here

    @property
    def grid(self) -> StepGrid:
        """The steps as noise levels."""
        return StepGrid(raw=self.steps, shift=self.shift)

    def student(self) -> StudentWeights | None:
        """Its weights, read from their file; None for those of the pipeline.

        Raises:
            BadFileError: they cannot be read.
        """
        return None if self.weights is None else read(Path(self.weights))

    def values(self, transformer: nn.Module) -> dict[str, Tensor]:
        """New value of each parameter of `transformer` that the student changes.

        Raises:
            BadFileError: the weights cannot be read or do not fit this transformer; the first misfit is named.
        """
        student = self.student()
        return {} if student is None else student.values(transformer, self.strength, self.weights)

    def apply(self, model: Any) -> Applied:
        """Change a loaded ``WanPipeline`` in place; see `Method.apply`.

        Raises:
            UnsupportedModelError: no ``WanPipeline`` with one transformer of plain tensors.
            BadFileError: the weights cannot be read or do not fit this transformer; the first misfit is named.
            ValueError: no stock scheduler holds the steps.
        """
        transformer = wan.check(model)
        values = self.values(transformer)
        with Applied() as undo:
            undo.occupy(model, self)
            run_few_steps(undo, model, self.grid)
            replace_weights(undo, transformer, values)
            return undo.pop_all()

    def save_pretrained(self, folder: hub.PathLike) -> None:
        """Write ``fewstep.json``, the weights and a model card; weights of a checkpoint become safetensors.

        Raises:
            BadFileError: the checkpoint holds a LoRA.
        """
        files = {}
        kind = "" if self.weights is None else Path(self.weights).suffix.lower()
        if kind in SUFFIXES and (student := self.student()):
            if not student.full:
                raise BadFileError(
                    f"{self.weights} is a LoRA in a checkpoint of training: export it with --format lora"
                )
            write(student.full, Path(folder) / "weights.safetensors")
            files = {"weights": "weights.safetensors"}
        hub.save(self, folder, files=files)

    @classmethod
    def from_lightx2v(cls, path: Path) -> Self:
        """The student that a LightX2V configuration describes; paths in it count from where LightX2V is started.

        Raises:
            BadFileError: it cannot be read, is no such configuration, or has guidance or several LoRAs.
        """
        return cls(**lightx2v.fields(path))
