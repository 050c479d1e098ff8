"""The conformance suite of methods, on pictures with text and on text alone."""

from __future__ import annotations

import pytest
import torch
from fewstep.families import tiny_moe
from fewstep.testing import Case, MethodSuite
from fewstep_modes import NAEE, REAP, MCMoE, MoDES, ReduceK

POINT = {"target": 0.5, "tau_text": 0.05, "tau_vision": 0.09}
MODES = MoDES(points=(POINT,), alpha_text=(0.6, 0.4), alpha_vision=(0.7, 0.3))
BASELINES = {
    "reduce-k": ReduceK(keep=2.0),
    "naee": NAEE(beta=0.4),
    "mc-moe": MCMoE(beta=0.4),
    "reap": REAP(removed=((0, 1), (5, 7)), experts=8, top_k=4, layers=(0, 1)),
}


def last_logits(model):
    with torch.no_grad():
        return trained_logits(model)


def trained_logits(model):
    family = "qwen3_vl_moe" if model.config.model_type == "qwen3_vl_moe" else "qwen3_moe"
    inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in tiny_moe.tiny_inputs(family).items()}
    return model(**inputs, use_cache=False).logits[:, -1]


def case_of(method, family="qwen3_vl_moe"):
    model = tiny_moe.tiny(family, num_hidden_layers=2, layer_types=["full_attention"] * 2)
    return Case(method=method, model=model, call=last_logits, trained=trained_logits)


class TestMoDES(MethodSuite):
    @pytest.fixture
    def case(self):
        return case_of(MODES)


class TestMoDESOnTextAlone(MethodSuite):
    @pytest.fixture
    def case(self):
        return case_of(MODES, "qwen3_moe")

    @pytest.mark.slow
    def test_survives_compilation(self, case, monkeypatch):
        super().test_survives_compilation(case, monkeypatch)


@pytest.mark.parametrize("method", BASELINES.values(), ids=BASELINES)
class TestBaselines(MethodSuite):
    @pytest.fixture
    def case(self, method):
        return case_of(method)

    @pytest.mark.slow  # the hooks are those of MoDES
    def test_survives_compilation(self, case, monkeypatch):
        super().test_survives_compilation(case, monkeypatch)
