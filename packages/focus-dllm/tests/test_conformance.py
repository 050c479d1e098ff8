import pytest
import torch
from fewstep.families import masked_lm
from fewstep.testing import Case, MethodSuite
from fewstep_focus_dllm import DecodingOptions, FastDLLM, FastDLLMPublished, FocusDLLM, SparseDLLM, Vanilla
from fewstep_focus_dllm.generation import current_generate

DECODING = DecodingOptions(gen_length=16, block_length=8, stop_at_eos=False)


def tokens_of(model):
    """The response to a prompt, decoded as the model decodes now."""
    ids = torch.randint(3, 49, (1, 48), generator=torch.Generator().manual_seed(0))
    return current_generate(model)(ids, decoding=DECODING).response.float()


class TestFocus(MethodSuite):
    @pytest.fixture
    def case(self):
        method = FocusDLLM(keep=0.3, keep_floor=0, prompt_block=8, sinks=3, last_dense=1, min_focus=2)
        return Case(method=method, model=masked_lm.tiny(), call=tokens_of)


class TestFocusOnDream(MethodSuite):
    @pytest.fixture
    def case(self):
        method = FocusDLLM(keep=0.3, keep_floor=0, prompt_block=16, units=True, sinks=3, min_focus=2, full_every=2)
        return Case(method=method, model=masked_lm.tiny("dream"), call=tokens_of)


class TestFastDLLM(MethodSuite):
    @pytest.fixture
    def case(self):
        return Case(method=FastDLLM(), model=masked_lm.tiny(), call=tokens_of)


class TestPrefix(MethodSuite):
    @pytest.fixture
    def case(self):
        return Case(method=FastDLLM(cache="prefix"), model=masked_lm.tiny("dream"), call=tokens_of)


class TestFastDLLMPublished(MethodSuite):
    @pytest.fixture
    def case(self):
        return Case(method=FastDLLMPublished(), model=masked_lm.tiny(), call=tokens_of)


class TestSparseDLLM(MethodSuite):
    @pytest.fixture
    def case(self):
        return Case(method=SparseDLLM(), model=masked_lm.tiny(), call=tokens_of)


class TestVanilla(MethodSuite):
    @pytest.fixture
    def case(self):
        return Case(method=Vanilla(), model=masked_lm.tiny(), call=tokens_of)

    def test_apply_changes_the_output(self, case):
        """It changes the cost only: the tokens are those of vanilla decoding."""
        with case.method.apply(case.model):
            applied = case.call(case.model)
        assert torch.equal(applied, case.call(case.model))
