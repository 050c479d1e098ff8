"""Bad input gets one sentence that says what was found and what to do, and leaves the model as it was."""

import pytest
import torch
from fewstep.errors import SeamConflictError, UnsupportedModelError
from fewstep.families import causal_lm, masked_lm
from fewstep_focus_dllm import DecodingOptions, FastDLLM, FocusDLLM, SparseDLLM, generate
from fewstep_focus_dllm.fit import Probe
from fewstep_focus_dllm.generation import current_generate
from fewstep_focus_dllm.tasks import Agreement, Latency, Retrieval


def test_an_autoregressive_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="no mask token"):
        FocusDLLM().apply(causal_lm.tiny())
    with pytest.raises(UnsupportedModelError, match="no mask token"):
        generate(causal_lm.tiny(), causal_lm.tiny_prompt(8))


def test_a_masked_model_that_looks_one_way_is_refused():
    model = masked_lm.tiny()
    model.config.is_causal = True
    with pytest.raises(UnsupportedModelError, match="autoregressive"):
        FocusDLLM().apply(model)


def test_diffusion_gemma_is_refused_with_the_reason():
    from transformers import DiffusionGemmaForBlockDiffusion

    model = object.__new__(DiffusionGemmaForBlockDiffusion)
    with pytest.raises(UnsupportedModelError, match="no subset of rows"):
        FocusDLLM().apply(model)


def test_a_prompt_longer_than_the_positions_of_the_model(llada, prompt):
    with pytest.raises(ValueError, match="need 520 positions, but the model has 512"):
        generate(llada, prompt(504), decoding=DecodingOptions(gen_length=16))


def test_an_empty_prompt(llada):
    with pytest.raises(ValueError, match="prompt is empty"):
        generate(llada, torch.empty(1, 0, dtype=torch.long))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ([[1, 0, 1, 1]], "one run of ones"),
        ([[0, 1, 1, 0]], "one side only"),
        ([[0, 0, 0, 0]], "one run of ones"),
        ([[1, 1, 1]], r"attention_mask is \(1, 3\)"),
    ],
)
def test_masks_with_holes(llada, prompt, mask, said):
    with pytest.raises(ValueError, match=said):
        generate(llada, prompt(4), torch.tensor(mask))


def test_shapes_that_do_not_fit(llada, prompt):
    with pytest.raises(ValueError, match=r"\[batch, tokens\]"):
        generate(llada, prompt(4)[0])
    with pytest.raises(ValueError, match=r"gen_length\] = \(1, 16\)"):
        generate(llada, prompt(4), response=prompt(8), decoding=DecodingOptions(gen_length=16))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"keep": 0.0}, r"\(0, 1\]"),
        ({"keep": 1.1}, r"\(0, 1\]"),
        ({"window": 2}, "odd"),
        ({"window": 0}, "odd"),
        ({"prompt_block": 0}, "at least 1"),
        ({"last_dense": -1}, "at least 0"),
        ({"min_focus": 0}, "at least 1"),
        ({"full_every": 0}, "at least 1"),
        ({"sinks": -1}, "at least 0"),
    ],
)
def test_fields_out_of_range(fields, said):
    with pytest.raises(ValueError, match=said):
        FocusDLLM(**fields)


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        (Latency, {"length": -1}, "length must be at least 1, found -1"),
        (Latency, {"timed_steps": 0}, "timed_steps must be at least 1"),
        (Latency, {"block_length": 0}, "block_length must be at least 1"),
        (Retrieval, {"records": 0}, "records must be at least 1"),
        (Agreement, {"hidden": 0}, "hidden must be at least 1"),
        (Agreement, {"prompts": 0}, "prompts must be at least 1"),
        (Probe, {"length": 0}, "length must be at least 1"),
        (Probe, {"gen_length": 0}, "gen_length must be at least 1"),
        (FocusDLLM, {"min_prompt": -1}, "min_prompt must be at least 0"),
        (FocusDLLM, {"focus_ratio": float("nan")}, "focus_ratio must be at least 0, found nan"),
    ],
)
def test_impossible_numbers_are_named(kind, fields, said):
    with pytest.raises(ValueError, match=said):
        kind(**fields)


def test_a_response_of_any_length_is_counted_before_it_is_made(llada, prompt):
    with pytest.raises(ValueError, match="the model has 512"):
        generate(llada, prompt(4), decoding=DecodingOptions(gen_length=10**12))


def test_a_share_out_of_range_of_a_baseline():
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        SparseDLLM(keep=0.0)


def test_a_last_dense_layer_that_the_model_does_not_have(llada):
    with pytest.raises(ValueError, match="only layers 0 to 3"):
        FocusDLLM(last_dense=4).apply(llada)
    assert "generate" not in vars(llada)


def test_two_methods_on_one_model(llada):
    with FastDLLM().apply(llada), pytest.raises(SeamConflictError, match="focus-dllm.*fast-dllm"):
        FocusDLLM().apply(llada)


def test_an_interrupted_call_leaves_nothing_behind(llada, prompt, focus):
    """Ctrl-C at a block border; the next call gives what it always gave."""
    decoding = DecodingOptions(gen_length=16, block_length=8, stop_at_eos=False)

    def interrupt(_):
        raise KeyboardInterrupt

    with focus().apply(llada):
        wanted = current_generate(llada)(prompt(), decoding=decoding).response
        with pytest.raises(KeyboardInterrupt):
            current_generate(llada)(prompt(), decoding=decoding, on_block=interrupt)
        assert torch.equal(current_generate(llada)(prompt(), decoding=decoding).response, wanted)
