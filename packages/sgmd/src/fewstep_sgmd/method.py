"""`SGMD`: run a Wan pipeline with a few-step student's weights, its steps, and without guidance."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from fewstep import hub
from fewstep.applied import Applied
from fewstep.cards import Card
from fewstep.families import wan
from fewstep.flow import StepGrid
from fewstep.method import Method

from .few_step_pipeline import replace_weights, run_few_steps
from .weight_files import read


@dataclass(frozen=True, kw_only=True)
class SGMD(Method):
    """A few-step video student made by score gradient matching distillation (SGMD, arXiv:2605.30116).

    Applied to a ``WanPipeline``: the transformer gets the student's weights, the scheduler runs exactly the steps that
    the student was trained on, and every call of the pipeline makes that many steps without guidance, whatever number
    of steps and guidance scale it asks for. The weights that were there wait in host memory.

    Raises:
        ValueError: the steps or the shift are impossible.
    """

    name: ClassVar[str] = "sgmd"
    seams: ClassVar[frozenset[str]] = frozenset({"transformer-weights", "scheduler", "guidance"})
    formats: ClassVar[tuple[Card, ...]] = (
        Card(
            name="diffusers",
            summary="a pipeline folder that diffusers loads alone",
            target="fewstep_sgmd.export:DiffusersFolder",
        ),
        Card(name="lora", summary="a LoRA for pipe.load_lora_weights", target="fewstep_sgmd.export:PeftLora"),
        Card(
            name="lightx2v",
            summary="weights or LoRA in native names, with the configuration of LightX2V",
            target="fewstep_sgmd.export:LightX2V",
        ),
        Card(name="comfy", summary="model or LoRA in native names for ComfyUI", target="fewstep_sgmd.export:Comfy"),
    )

    weights: Path | None = hub.weights()
    """Safetensors file of the student, index of several, or folder: all weights or a LoRA, in the names of diffusers,
    PEFT, LightX2V, ComfyUI or kohya's trainers.
    Default: the pipeline's own weights, where they are a student's already."""
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    """Raw steps before the shift, evenly spaced from 1000."""
    shift: float = 5.0
    """Shift of the steps: timesteps 1000, 937.5, 833.3, 625 with the default steps."""
    strength: float = 1.0
    """Share of a LoRA's change that is added to the weights."""
    size: tuple[int, int, int] | None = field(default=None, compare=False)
    """Frames, height and width of the videos that the student was trained on, which `fewstep run` makes by default."""

    def __post_init__(self) -> None:
        _ = self.grid  # an impossible grid fails here

    @property
    def grid(self) -> StepGrid:
        """The steps as noise levels."""
        return StepGrid(raw=self.steps, shift=self.shift)

    def apply(self, model: Any) -> Applied:
        """Change a loaded ``WanPipeline`` in place; see `Method.apply`.

        Raises:
            UnsupportedModelError: no ``WanPipeline`` with one transformer of plain tensors.
            BadFileError: the weights cannot be read or do not fit this transformer; the first misfit is named.
            ValueError: no stock scheduler holds the steps.
        """
        transformer, values = wan.check(model), {}
        if self.weights is not None:
            values = read(Path(self.weights)).values(transformer, self.strength, self.weights)
        with Applied() as undo:
            undo.occupy(model, self)
            run_few_steps(undo, model, self.grid)
            replace_weights(undo, transformer, values)
            return undo.pop_all()
