"""Kernels: one plain specification each, fast versions by backend, and what is needed to check and compile them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.cards import import_target

Function = Callable[..., Any]
"""A backend: tensors and options in, a tensor or a tuple of tensors out."""


@dataclass(frozen=True)
class Case:
    """One call that every backend must answer as the specification does."""

    name: str
    args: tuple[Tensor, ...]
    options: Mapping[str, Any]
    tolerance: float = 0.0
    """Where larger than the kernel's own: several roundings in half precision in a row."""

    def call(self, function: Function) -> Any:
        """Return what `function` makes of this case."""
        return function(*self.args, **self.options)

    def to(self, device: str) -> Case:
        """Return the same case with its tensors on `device`."""
        return Case(self.name, tuple(tensor.to(device) for tensor in self.args), self.options, self.tolerance)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """One specialisation of a Triton function, enough to compile it for a GPU that is not present."""

    name: str
    function: Any
    """The ``@triton.jit`` function."""
    types: Mapping[str, str]
    """Run-time arguments, in any order: ``{"keys": "*bf16", "tokens": "i32"}``."""
    constants: Mapping[str, Any]
    """Values of the ``tl.constexpr`` arguments."""
    aligned: tuple[str, ...] = ()
    """Arguments that the launcher would find divisible by 16: pointers, strides."""
    warps: int = 4
    stages: int | None = None
    """Tiles that are loaded ahead; None leaves it to the compiler for the target."""


@dataclass(frozen=True)
class Result:
    """One line of ``fewstep kernels``: a check of one backend, or a compilation for one target."""

    kernel: str
    what: str
    ok: bool
    detail: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """An operation with a plain PyTorch specification and fast versions of it."""

    name: str
    target: str
    """``"module:NAME"`` of this very object, so that a fresh process can import it."""
    naive: Function
    """The specification."""
    fast: Mapping[str, str] = field(default_factory=dict)
    """Backend name (``cpu``, ``triton``) to ``"module:function"``, imported only when used."""
    cases: Callable[[], Iterable[Case]]
    """Makes the inputs on which backends are compared: odd sizes, dtypes, GQA ratios; the same ones on each call."""
    signatures: str | None = None
    """``"module:function"`` returning the `Signature`s to compile ahead of time; None without a Triton version."""
    tolerance: float = 1e-5
    """Largest allowed difference from the specification, as a share of the specification's largest magnitude."""

    def function(self, backend: str) -> Function:
        """Import and return the function of one backend.

        Raises:
            ValueError: there is no such backend.
            ImportError: the backend needs a package that is not installed.
        """
        if backend == "naive":
            return self.naive
        if backend not in self.fast:
            raise ValueError(f"kernel {self.name} has no backend {backend!r}; it has: naive, {', '.join(self.fast)}")
        return import_target(self.fast[backend])

    def chosen_backend(self, device: torch.device | str) -> str:
        """Backend that a caller who names none gets for tensors on this device: ``cpu``, ``triton`` or ``naive``."""
        name = {"cpu": "cpu", "cuda": "triton"}.get(torch.device(device).type)
        installed = name != "triton" or importlib.util.find_spec("triton")
        return name if name in self.fast and installed else "naive"

    def exact_backend(self, tensor: Tensor) -> str:
        """`chosen_backend` of an operation whose fast versions compute in fp32: ``naive`` where `tensor` is float64."""
        return "naive" if tensor.dtype == torch.float64 else self.chosen_backend(tensor.device)

    def trainable_backend(self, *tensors: Tensor) -> str:
        """`chosen_backend` of an operation whose Triton version has no gradient: ``naive`` where one is recorded."""
        chosen = self.chosen_backend(tensors[0].device)
        recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        return "naive" if chosen == "triton" and recorded else chosen
