"""Salt and SC-DMD against the contract."""

from __future__ import annotations

import pytest
from fewstep.testing import Case, MethodSuite
from fewstep_salt import SCDMD, Salt


class TestSalt(MethodSuite):
    @pytest.fixture
    def case(self, pipe, sample, full_file) -> Case:
        return Case(method=Salt(weights=full_file, chunk=2), model=pipe, call=sample)


class TestWindow(MethodSuite):
    @pytest.fixture
    def case(self, pipe, sample) -> Case:
        method = Salt(steps=(1000, 500), chunk=1, window=3, sink=1, relative=True, codec="int8", eta=0.5)
        return Case(method=method, model=pipe, call=sample)


class TestSCDMD(MethodSuite):
    @pytest.fixture
    def case(self, pipe, sample, full_file) -> Case:
        return Case(method=SCDMD(weights=full_file, steps=(1000, 500)), model=pipe, call=sample)
