import json

import pytest
import torch
from fewstep.families import causal_lm
from fewstep.testing import Case, MethodSuite
from fewstep_slim_infer import GemFilter, LazyLLM, SlimInfer


def last_logits(model):
    with torch.no_grad():
        return trained_logits(model)


def trained_logits(model):
    return model(causal_lm.tiny_prompt(150), logits_to_keep=1).logits


@torch.no_grad()
def more_logits(model):
    return model(causal_lm.tiny_prompt(90), logits_to_keep=5).logits


class TestSlimInfer(MethodSuite):
    @pytest.fixture
    def case(self):
        method = SlimInfer(entry=(1, 2), keep=0.5, block=16, unit=4, score="dot")
        model = causal_lm.tiny(num_hidden_layers=3)
        return Case(method=method, model=model, call=last_logits, trained=trained_logits, others=(more_logits,))


class TestSlimInferWhileDecoding(MethodSuite):
    @pytest.fixture
    def case(self):
        method = SlimInfer(
            entry=(1, 2), keep=0.5, decode_keep=0.4, overlap=1.0, offload=True, block=16, unit=4, score="unit_softmax"
        )
        return Case(
            method=method, model=causal_lm.tiny("qwen3", num_hidden_layers=3), call=last_logits, trained=trained_logits
        )


class TestLazyLLM(MethodSuite):
    @pytest.fixture
    def case(self):
        return Case(
            method=LazyLLM(entry=(1, 2), keep=0.5),
            model=causal_lm.tiny("qwen2", num_hidden_layers=3),
            call=last_logits,
            trained=trained_logits,
        )


class TestGemFilter(MethodSuite):
    @pytest.fixture
    def case(self):
        return Case(
            method=GemFilter(filter_layer=1, keep=0.5),
            model=causal_lm.tiny(num_hidden_layers=3),
            call=last_logits,
            trained=trained_logits,
        )


def test_a_method_saved_before_a_field_was_renamed_still_loads(tmp_path):
    fields = {"entry": [2, 4], "keep": [0.5, 0.25], "block": 16, "unit": 4, "overlap": 0.9, "revive": "recompute"}
    (tmp_path / "fewstep.json").write_text(
        json.dumps({"method": "slim-infer", "package": "fewstep_slim_infer", "core": "0.1.0", "fields": fields})
    )
    wanted = SlimInfer(entry=(2, 4), keep=(0.5, 0.25), block=16, unit=4, decode_from="recompute")
    assert SlimInfer.from_pretrained(tmp_path) == wanted
