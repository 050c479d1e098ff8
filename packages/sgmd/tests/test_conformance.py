"""SGMD against the contract, with full weights, with a LoRA, and with its sampler alone."""

from __future__ import annotations

import pytest
from fewstep.testing import Case, MethodSuite
from fewstep_sgmd import SGMD


class TestFull(MethodSuite):
    @pytest.fixture
    def case(self, pipe, sample, full_file) -> Case:
        return Case(method=SGMD(weights=full_file), model=pipe, call=sample)


class TestLora(MethodSuite):
    @pytest.fixture
    def case(self, pipe, sample, lora_file) -> Case:
        return Case(method=SGMD(weights=lora_file, strength=0.5), model=pipe, call=sample)


class TestSampler(MethodSuite):
    @pytest.fixture
    def case(self, pipe, sample) -> Case:
        return Case(method=SGMD(steps=(1000, 500), shift=8.0), model=pipe, call=sample)
