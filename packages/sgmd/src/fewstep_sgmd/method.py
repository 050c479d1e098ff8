"""`SGMD`: run a Wan pipeline with a few-step student's weights, its steps, and without guidance."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from fewstep import hub
from fewstep.applied import Applied
from fewstep.cards import Card
from fewstep.errors import BadFileError
from fewstep.families import wan
from fewstep.flow import StepGrid
from fewstep.method import Method
from torch import Tensor, nn

from .weights import StudentWeights, read


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
    """Safetensors file of the student: all weights or a LoRA, in the names of diffusers, PEFT, LightX2V or ComfyUI.
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
            BadFileError: the weights cannot be read or do not fit this transformer; the first misfit is named.
        """
        transformer = wan.check(model)
        values = self.student_values(transformer) if self.weights is not None else {}
        scheduler = self.grid.scheduler()
        with Applied() as undo:
            undo.occupy(model, self)
            undo.callback(setattr, model, "scheduler", model.scheduler)
            model.scheduler = scheduler
            undo.callback(setattr, model, "__class__", type(model))
            model.__class__ = _few_step(type(model), len(self.steps))
            for name, value in values.items():
                _replace(undo, transformer.get_parameter(name), value)
            return undo.pop_all()

    def student_values(self, transformer: nn.Module) -> dict[str, Tensor]:
        """New values of the parameters that the student changes, in the shapes of `transformer`.

        Raises:
            BadFileError: the weights cannot be read or do not fit; the first misfit is named.
        """
        if self.weights is None:
            raise BadFileError(f"this {self.name} method has no weights")
        student, current = read(Path(self.weights)), dict(transformer.named_parameters())
        check_fits(student, {name: parameter.shape for name, parameter in current.items()}, self.weights)
        if student.full:
            return student.full
        return {
            name: current[name].detach().float() + self.strength * change.to(current[name].device)
            for name, change in student.changes().items()
        }


def check_fits(student: StudentWeights, shapes: Mapping[str, torch.Size], source: Any) -> None:
    """Strictly: full weights have exactly these parameters, a LoRA no other, each of the right shape.

    Raises:
        BadFileError: they do not; the first misfit is named.
    """
    found = {name: tuple(tensor.shape) for name, tensor in (student.full or student.deltas).items()}
    for module, factors in student.factors.items():
        found[f"{module}.weight"] = (factors.up.shape[0], factors.down.shape[1])
        if factors.up.shape[1] != factors.down.shape[0]:
            raise BadFileError(f"{source}: the low-rank factors of {module} have different ranks")
    if extra := [name for name in found if name not in shapes]:
        raise BadFileError(f"{source} does not fit the transformer, which has no {extra[0]}")
    if student.full and (missing := [name for name in shapes if name not in found]):
        raise BadFileError(f"{source} does not fit the transformer: {missing[0]} is missing")
    for name, shape in found.items():
        if shape != tuple(shapes[name]):
            raise BadFileError(f"{source} does not fit: {name} is {shape}, in the transformer {tuple(shapes[name])}")


def _replace(undo: Applied, parameter: nn.Parameter, value: Tensor) -> None:
    """Overwrite a parameter in place; what it was waits on the host, so the device holds no second copy."""
    before = parameter.detach().to("cpu", copy=True)
    undo.callback(_overwrite, parameter, before)
    _overwrite(parameter, value)


@torch.no_grad()
def _overwrite(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.copy_(value)


def _few_step(cls: type, steps: int) -> type:
    """A subclass of a pipeline class, of the same name, whose calls make `steps` steps without guidance."""
    signature = inspect.signature(cls.__call__)

    @functools.wraps(cls.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        bound.arguments |= {"num_inference_steps": steps, "guidance_scale": 1.0}
        return cls.__call__(*bound.args, **bound.kwargs)

    same = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, (cls,), {**same, "__call__": __call__})
