import pytest
import torch
from fewstep.families import tiny_moe
from fewstep.testing import Case, MethodSuite
from fewstep_modes import REAP, MCMoE, MoDES, ReduceK


@torch.no_grad()
def last_logits(model):
    family = "qwen3_vl_moe" if model.config.model_type == "qwen3_vl_moe" else "qwen3_moe"
    inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in tiny_moe.tiny_inputs(family).items()}
    return model(**inputs, use_cache=False).logits[:, -1]


METHODS = {
    "modes": MoDES(
        target=0.5,
        points=({"target": 0.5, "tau_text": 0.05, "tau_vision": 0.09},),
        alpha_text=(0.5, 0.3, 0.2),
        alpha_vision=(0.6, 0.3, 0.1),
    ),
    "reduce-k": ReduceK(keep=2.0),
    "mc-moe": MCMoE(beta=0.4),
    "reap": REAP(removed=((0, 1), (2,), (5, 7)), experts=8, top_k=4, layers=(0, 1, 2)),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
class TestMethods(MethodSuite):
    @pytest.fixture
    def case(self, method):
        return Case(method=method, model=tiny_moe.tiny(), call=last_logits)


class TestMoDESOnTextAlone(MethodSuite):
    @pytest.fixture
    def case(self):
        return Case(method=METHODS["modes"], model=tiny_moe.tiny("qwen3_moe"), call=last_logits)
