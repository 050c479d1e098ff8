"""A roofline of compute, bandwidth and launch overhead: the time of a phase on a machine. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Kind = Literal["matmul", "attention", "conv2d", "conv3d", "elementwise"]
"""Kinds of operations that a machine may run at different rates."""
Bound = Literal["compute", "bandwidth", "launches"]
ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number by dtype."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """Work of one kind: floating-point operations, bytes to and from memory, and calls of the host, views included."""

    kind: Kind = "matmul"
    flops: float = 0.0
    bytes: float = 0.0
    launches: float = 0.0

    def __mul__(self, times: float) -> Operation:
        return Operation(
            kind=self.kind, flops=times * self.flops, bytes=times * self.bytes, launches=times * self.launches
        )

    __rmul__ = __mul__


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of answering one request, such as reading the prompt, or one denoising step."""

    name: str
    operations: tuple[Operation, ...]
    """Of one run."""
    times: float = 1.0
    """Runs for each request."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Phases of one request, and memory by what fills it."""

    phases: tuple[Phase, ...]
    memory: Mapping[str, float]
    """Bytes, for example of ``weights`` and of the ``KV cache``."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One request with the unchanged model, and with a method; phases and memory of the same name take the place."""

    before: Cost
    after: Cost


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """The most that a machine does of one kind of operation in a second."""

    flops: float
    bandwidth: float
    """Bytes."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Ceilings of a card or processor for one dtype."""

    name: str
    ceilings: Mapping[str, Ceiling]
    """By kind; kinds that are not there have the ceiling of ``matmul``."""
    launch: float
    """Seconds of the host for one operation."""
    memory: float
    """Bytes."""
    ahead: bool = True
    """The host launches while the card still computes, so that the longer of both counts; on a CPU they add up."""
    source: str = field(default="", compare=False)
    """Where the numbers are from, in a few words."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One request; every family reads the fields that it has a use for."""

    length: int = 8192
    """Tokens of the prompt, of language models."""
    new_tokens: int = 256
    """Tokens of the answer."""
    block_length: int = 32
    """Tokens of a decoding block, of masked diffusion models."""
    steps: int | None = None
    """Denoising steps of the unchanged model; default: 50 for videos, one for each new token."""
    guidance: float = 5.0
    """Guidance scale of the unchanged model; above 1 it calls the network twice a step."""
    frames: int = 81
    """Frames of a video."""
    height: int = 480
    """Rows of pixels."""
    width: int = 832
    """Columns of pixels."""
    text_tokens: int = 512
    """Length to which the prompts of a video are padded."""
    batch: int = 1
    """Requests at once."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Dtype of weights and activations."""
    vae: Literal["stock", "exact"] = "stock"
    """The unchanged VAE: diffusers as it is, or its weights in the fastest exact formulation."""

    def __post_init__(self) -> None:
        for name in ("length", "new_tokens", "block_length", "frames", "height", "width", "text_tokens", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")

    @property
    def element(self) -> int:
        """Bytes of a number."""
        return ELEMENT[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the rows of a task measure, in the words of a plan."""

    work: Workload
    phases: Mapping[str, str]
    """Phase by metric; empty for the sum of all."""
    requests: int = 1
    """Requests that a time of the task is divided by."""


@dataclass(frozen=True)
class Spent:
    """Seconds by what they are spent on."""

    compute: float = 0.0
    bandwidth: float = 0.0
    launches: float = 0.0
    seconds: float = 0.0

    @property
    def bound(self) -> Bound:
        """The largest part."""
        parts: dict[Bound, float] = {
            "compute": self.compute,
            "bandwidth": self.bandwidth,
            "launches": self.launches,
        }
        return max(parts, key=lambda name: parts[name])


def time(phase: Phase, machine: Machine) -> Spent:
    """Seconds of one run of a phase.

    Each operation takes the longer of its arithmetic and its memory traffic; launches run ahead of a card, and come on
    top on a CPU:

        t = max(sum_o max(flops_o / F_k, bytes_o / B_k), n launch)        k the kind of o; + instead of max on a CPU
    """
    compute = bandwidth = launches = 0.0
    for operation in phase.operations:
        ceiling = machine.ceilings.get(operation.kind, machine.ceilings["matmul"])
        arithmetic, traffic = operation.flops / ceiling.flops, operation.bytes / ceiling.bandwidth
        compute, bandwidth = (
            (compute + arithmetic, bandwidth) if arithmetic >= traffic else (compute, bandwidth + traffic)
        )
        launches += operation.launches * machine.launch
    work = compute + bandwidth
    return Spent(compute, bandwidth, launches, max(work, launches) if machine.ahead else work + launches)


def merged(phase: Phase) -> Phase:
    """The same phase with equal operations as one, for many evaluations."""
    counts = Counter(phase.operations)
    return replace(phase, operations=tuple(count * operation for operation, count in counts.items()))


def memory(cost: Cost) -> float:
    """Bytes of everything that is there at once: of activations, only the largest."""
    passing = [size for name, size in cost.memory.items() if name.endswith("activations")]
    return sum(cost.memory.values()) - sum(passing) + max(passing, default=0.0)


def total(phases: Iterable[Phase], machine: Machine) -> float:
    """Seconds of one request."""
    return sum(phase.times * time(phase, machine).seconds for phase in phases)
