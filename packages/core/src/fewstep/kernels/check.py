"""Comparison of every backend of a kernel with its specification, on the machine at hand.

``python -m fewstep.kernels.check module:KERNEL`` compares one kernel's Triton version in this process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from fewstep.cards import import_target

from . import Case, Kernel, Result
from .ahead import compile_ahead, known_target, one_line


class MismatchError(Exception):
    """A backend does not do what the specification does."""


def report(kernels: list[Kernel], *, check: bool, targets: list[str]) -> list[dict[str, Any]]:
    """Check and compile kernels; one dict with the fields of `Result` for each kernel and backend or target.

    Raises:
        ValueError: a target is unknown.
    """
    for target in targets:
        known_target(target)
    results = []
    for kernel in kernels:
        results += check_backends(kernel) if check else []
        results += [compile_ahead(kernel, target) for target in targets]
    return [asdict(result) for result in results]


def check_backends(kernel: Kernel) -> list[Result]:
    """Compare every backend with the specification; Triton in its interpreter, and on the GPU where there is one."""
    results = [numerics(kernel, backend) for backend in kernel.fast if backend != "triton"]
    if "triton" in kernel.fast:
        results.append(interpreted(kernel))
        if torch.cuda.is_available() and importlib.util.find_spec("triton"):
            results.append(numerics(kernel, "triton", device="cuda"))
    return results


def numerics(kernel: Kernel, backend: str, device: str = "cpu") -> Result:
    """Compare one backend with the specification in this process: values, outputs fully written, same answer twice."""
    what, start = backend if device == "cpu" else f"{backend} on {device}", time.perf_counter()
    name, errors = backend, []
    try:
        function = kernel.function(backend)
        for case in kernel.cases():
            name = case.name
            errors.append(difference(kernel, function, case.to(device)))
    except Exception as error:  # a kernel may fail in any way; the report says in which case and how
        return Result(kernel.name, what, False, f"{name}: {one_line(error)}", time.perf_counter() - start)
    detail = f"max error {max(errors):.1e} in {len(errors)} cases" if errors else "no cases to compare"
    return Result(kernel.name, what, bool(errors), detail, time.perf_counter() - start)


def difference(kernel: Kernel, function: Callable, case: Case) -> float:
    """Largest difference from the specification, as a share of the largest magnitude of that output.

    Raises:
        MismatchError: shape, dtype or values differ, an element was left unwritten, or a second call differs.
    """
    expected = _outputs(case.call(kernel.naive))
    with nan_filled():
        first, second = _outputs(case.call(function)), _outputs(case.call(function))
    _require(len(first) == len(expected), f"{len(first)} outputs, not {len(expected)}")
    allowed = max(kernel.tolerance, case.tolerance)
    return max(_difference(allowed, *outputs) for outputs in zip(first, second, expected, strict=True))


def _difference(allowed: float, first: torch.Tensor, second: torch.Tensor, expected: torch.Tensor) -> float:
    _require(first.shape == expected.shape, f"shape {tuple(first.shape)}, not {tuple(expected.shape)}")
    _require(first.dtype == expected.dtype, f"{first.dtype}, not {expected.dtype}")
    _require(torch.equal(first.isnan(), expected.isnan()), "writes NaN or leaves elements unwritten")
    _require(torch.equal(first.isinf(), expected.isinf()), "infinite in other places")
    _require(torch.equal(first.nan_to_num(), second.nan_to_num()), "a second call gives another answer")
    finite = expected.isfinite()
    if not finite.any():
        return 0.0
    scale = expected[finite].double().abs().amax().clamp(min=1e-30)
    error = ((first - expected)[finite].abs().amax() / scale).item()
    # two ways to round to the output's dtype may differ in its last bit
    tolerance = max(allowed, torch.finfo(expected.dtype).eps)
    _require(error <= tolerance, f"error {error:.1e} above {tolerance:.0e}")
    return error


def _outputs(output: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (output,) if isinstance(output, torch.Tensor) else tuple(output)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise MismatchError(message)


@contextmanager
def nan_filled() -> Iterator[None]:
    """Let ``torch.empty`` return NaN inside, so that an output element that nobody writes is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # pyrefly: ignore[missing-attribute]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # pyrefly: ignore[missing-attribute]
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill  # pyrefly: ignore[missing-attribute]
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def interpreted(kernel: Kernel) -> Result:
    """Run `numerics` of the Triton version in Triton's interpreter, in a process of its own."""
    what, start = "triton (interpreter)", time.perf_counter()
    if not importlib.util.find_spec("triton"):
        return Result(kernel.name, what, True, "triton not installed, skipped", 0.0)
    # Triton reads the variable when it is imported, which this process may have done already
    command = [sys.executable, "-m", "fewstep.kernels.check", kernel.target]
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        return Result(kernel.name, what, False, (done.stderr.strip() or "no output").splitlines()[-1], seconds)
    answer = json.loads(done.stdout.splitlines()[-1])
    return Result(kernel.name, what, answer["ok"], answer["detail"], seconds)


if __name__ == "__main__":
    print(json.dumps(asdict(numerics(import_target(sys.argv[1]), "triton"))))
