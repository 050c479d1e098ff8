import importlib.util
import runpy
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from fewstep.families import masked_lm
from fewstep_focus_dllm import DecodingOptions, FocusDLLM
from fewstep_focus_dllm.decoders import TokenDecoder

MASK = 49


class Pass(NamedTuple):
    """One forward pass of a decoder."""

    tokens: Any
    about: Any
    plan: Any
    rows: Any


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
    """Options of a short response: 16 tokens in blocks of 8."""
    return DecodingOptions(gen_length=16, block_length=8, stop_at_eos=False)


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
def watched(monkeypatch):
    """Record the forward passes of all decoders: tokens before each, its logits, its plan, its rows (None for all)."""

    @contextmanager
    def watch():
        passes, current = [], {}
        with monkeypatch.context() as patch:
            full_pass, partial_pass, logits = (
                getattr(TokenDecoder, name) for name in ("full_pass", "partial_pass", "logits")
            )

            def record_full_pass(self, plan):
                current.update(plan=plan, rows=None)
                return full_pass(self, plan)

            def record_partial_pass(self, rows, plan, wanted=None):
                current.update(plan=plan, rows=rows)
                return partial_pass(self, rows, plan, wanted)

            def record_logits(self, *args):
                passes.append(Pass(self.state.inputs().clone(), logits(self, *args), **current))
                return passes[-1].about

            patch.setattr(TokenDecoder, "full_pass", record_full_pass)
            patch.setattr(TokenDecoder, "partial_pass", record_partial_pass)
            patch.setattr(TokenDecoder, "logits", record_logits)
            yield passes

    return watch
