"""Conformance suite for kernels: subclass `KernelSuite` and give it a ``kernel`` fixture."""

from __future__ import annotations

import importlib
import importlib.util
import inspect

import pytest
import torch

from fewstep.cards import import_target
from fewstep.kernels import Kernel
from fewstep.kernels.ahead import TARGETS, compile_ahead
from fewstep.kernels.check import interpreted, numerics

needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed")


class KernelSuite:
    """Conformance tests of a kernel. Values, fully written outputs and repeatability are one comparison per backend.

    ::

        class TestMyKernel(KernelSuite):
            @pytest.fixture
            def kernel(self):
                return KERNEL
    """

    @pytest.fixture
    def kernel(self) -> Kernel:
        raise NotImplementedError("give the suite a fixture named kernel that returns your Kernel")

    def test_target_is_this_kernel(self, kernel: Kernel):
        assert import_target(kernel.target) is kernel

    def test_shapes_are_those_of_the_specification(self, kernel: Kernel):
        """The annotations of the specification are checked when it runs; those of every other version equal them."""
        module, fast = kernel.target.partition(":")[0], dict(kernel.fast)
        if not importlib.util.find_spec("triton"):
            fast.pop("triton", None)
        public = getattr(importlib.import_module(module), kernel.naive.__name__)
        expected = {name: one.annotation for name, one in inspect.signature(kernel.naive).parameters.items()}
        for function in (public, *map(import_target, fast.values())):
            parameters = inspect.signature(function).parameters
            assert {name: parameters[name].annotation for name in expected} == expected, function

    def test_cases_cover_dtypes_and_odd_sizes(self, kernel: Kernel):
        tensors = [tensor for case in kernel.cases() for tensor in case.args]
        assert {tensor.dtype for tensor in tensors} >= {torch.float32, torch.bfloat16, torch.float16}
        assert any(size % 2 for tensor in tensors for size in tensor.shape[-2:])

    def test_cases_are_the_same_each_time(self, kernel: Kernel):
        for first, second in zip(kernel.cases(), kernel.cases(), strict=True):
            assert first.name == second.name
            assert all(torch.equal(a, b) for a, b in zip(first.args, second.args, strict=True))

    def test_inputs_are_left_alone(self, kernel: Kernel):
        for backend in ("naive", *(name for name in kernel.fast if name != "triton")):
            for used, fresh in zip(kernel.cases(), kernel.cases(), strict=True):
                used.call(kernel.function(backend))
                assert all(torch.equal(a, b) for a, b in zip(used.args, fresh.args, strict=True)), backend

    def test_every_backend_equals_the_specification(self, kernel: Kernel):
        for backend in ("naive", *(name for name in kernel.fast if name != "triton")):
            result = numerics(kernel, backend)
            assert result.ok, f"{backend}: {result.detail}"

    @needs_triton
    def test_triton_equals_the_specification_in_its_interpreter(self, kernel: Kernel):
        if "triton" not in kernel.fast:
            pytest.skip("no triton version")
        result = interpreted(kernel)
        assert result.ok, result.detail

    @needs_triton
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    def test_triton_equals_the_specification_on_the_gpu(self, kernel: Kernel):
        if "triton" not in kernel.fast:
            pytest.skip("no triton version")
        result = numerics(kernel, "triton", device="cuda")
        assert result.ok, result.detail

    @needs_triton
    @pytest.mark.parametrize("target", TARGETS)
    def test_compiles_ahead_without_spills(self, kernel: Kernel, target: str):
        result = compile_ahead(kernel, target)
        assert result.ok, result.detail
