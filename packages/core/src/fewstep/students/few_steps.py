"""Few-step pipelines: a student's weights, its steps and no guidance, undone exactly."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..applied import Applied
from ..families import plain_parameters
from ..flow import StepGrid


def run_few_steps(undo: Applied, pipe: Any, grid: StepGrid) -> None:
    """Make every call of `pipe` run the steps of `grid` without guidance, whatever the call asks for, until undone.

    Raises:
        ValueError: no stock scheduler holds these steps.
    """
    undo.callback(setattr, pipe, "scheduler", pipe.scheduler)
    pipe.scheduler = grid.scheduler()
    undo.callback(setattr, pipe, "__class__", type(pipe))
    pipe.__class__ = _few_step_class(type(pipe), len(grid))


def _few_step_class(cls: type, steps: int) -> type:
    """Derive a pipeline class of the same name whose calls make `steps` steps without guidance."""
    signature = inspect.signature(cls.__call__)

    @functools.wraps(cls.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        bound.arguments |= {"num_inference_steps": steps, "guidance_scale": 1.0}
        return cls.__call__(*bound.args, **bound.kwargs)

    same = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, (cls,), {**same, "__call__": __call__})


def replace_weights(undo: Applied, network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Overwrite parameters in place until undone; the values before wait on the host, so the device holds no copy."""
    parameters = plain_parameters(network)
    for name, value in values.items():
        parameter = parameters[name]
        undo.callback(_overwrite, parameter, parameter.detach().to("cpu", copy=True))
        _overwrite(parameter, value)


@torch.no_grad()
def _overwrite(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.copy_(value)


def is_student(pipe: Any, grid: StepGrid) -> bool:
    """True for a pipeline whose own scheduler is the one that a student of `grid` is saved with.

    `StepGrid.scheduler` writes the steps as ``shift`` and ``shift_terminal``; both are compared. Training and
    ``fewstep export --format diffusers`` save it; students of others often come with another scheduler.
    """
    own, student = pipe.scheduler, grid.scheduler()
    if type(own) is not type(student):
        return False
    pairs = [(scheduler.config.shift, scheduler.config.shift_terminal or 0.0) for scheduler in (own, student)]
    return all(math.isclose(*values, rel_tol=1e-6) for values in zip(*pairs, strict=True))
