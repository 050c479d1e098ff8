import importlib.util
import runpy
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fewstep.families import masked_lm
from fewstep_focus_dllm import Decoding, FocusDLLM
from fewstep_focus_dllm.decoder import Decoder

MASK = 49


@pytest.fixture(params=["llada", "dream"])
def family(request):
    """Both families: logits in place, and logits shifted by one."""
    return request.param


@pytest.fixture
def model(family):
    """A tiny random model in float64, where a wrong token shows and rounding does not."""
    return masked_lm.tiny(family).double()


@pytest.fixture
def llada():
    return masked_lm.tiny("llada").double()


@pytest.fixture
def decoding():
    """The card's lengths: 16 tokens in blocks of 8."""
    return Decoding(gen_length=16, block_length=8, stop_at_eos=False)


@pytest.fixture
def focus():
    """A FocusDLLM that prunes on tiny prompts; keyword arguments replace its fields."""

    def make(**fields):
        small = {"keep": 0.3, "keep_floor": 0, "prompt_block": 8, "sinks": 3, "last_dense": 1, "min_focus": 2}
        return FocusDLLM(**{**small, **fields})

    return make


@pytest.fixture
def prompt():
    """Random prompts ``[batch, length]`` without special tokens."""

    def make(length=48, batch=1, seed=0):
        return torch.randint(3, MASK, (batch, length), generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def zoo():
    """`fewstep.load` where the zoo is installed; skips, naming it, where it is not."""
    if importlib.util.find_spec("fewstep_zoo") is None:
        pytest.skip("needs fewstep-zoo: pip install fewstep-zoo")
    import fewstep

    return fewstep.load


@pytest.fixture(scope="session")
def reference():
    """The plain twins of ``reference.py``."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference.py"))))


@pytest.fixture
def watched():
    """Watch the forward passes of all decoders: ``(tokens before the step, answers, plan or None)`` of each."""

    @contextmanager
    def watch():
        seen, plans = [], []
        everything, some, answers = Decoder.everything, Decoder.some, Decoder.answers

        def spy_everything(self, plan):
            plans.append(plan)
            return everything(self, plan)

        def spy_some(self, positions, plan, wanted=None):
            plans.append(plan)
            return some(self, positions, plan, wanted)

        def spy_answers(self, *args, **kwargs):
            found = answers(self, *args, **kwargs)
            seen.append((self.state.tokens.clone(), found, plans[-1]))
            return found

        Decoder.everything, Decoder.some, Decoder.answers = spy_everything, spy_some, spy_answers
        try:
            yield seen
        finally:
            Decoder.everything, Decoder.some, Decoder.answers = everything, some, answers

    return watch
