"""Behind their end token masked diffusion models write anything: no decoder returns it."""

import pytest
import torch
from fewstep_focus_dllm import DecodingOptions, FastDLLM, FastDLLMPublished, FocusDLLM, SparseDLLM, Vanilla, generate
from fewstep_focus_dllm.generation import current_generate

MASK, END = 49, 2
FOCUS = FocusDLLM(keep=0.3, keep_floor=0, prompt_block=8, sinks=3, last_dense=1)
METHODS = [Vanilla(), FastDLLM(), FastDLLM(cache="prefix"), FastDLLMPublished(), SparseDLLM(), FOCUS]


def given(*rows, length=16):
    """Responses whose first tokens are given, the others masked."""
    return torch.tensor([[*row, *[MASK] * (length - len(row))] for row in rows])


@pytest.fixture(params=[None, *METHODS], ids=["plain", *(f"{m.name} {vars(m).get('cache', '')}" for m in METHODS)])
def call(request, model):
    """`generate` of a model with each decoder."""
    if request.param is None:
        yield lambda *args, **kwargs: generate(model, *args, **kwargs)
        return
    with request.param.apply(model):
        yield current_generate(model)


def test_the_response_ends_at_its_first_end_token(call, prompt):
    blocks = []
    response = given([14, END, END, END, 14, 27])
    options = DecodingOptions(gen_length=16, block_length=8)
    output = call(prompt(), response=response, decoding=options, on_block=lambda b: blocks.append(b[0].tolist()))
    assert output.response.tolist() == [[14, END]] and blocks == [[14, END]]
    assert output.sequences.tolist() == [[*prompt()[0].tolist(), 14, END]]


def test_the_shorter_responses_of_a_batch_are_filled_up_with_end_tokens(call, prompt):
    response = given([14, END, 30, 31, 32, 33, 34, 35], [5, 6, 7, 8, 9, END, 31, 32])
    options = DecodingOptions(gen_length=16, block_length=8)
    output = call(prompt(batch=2), response=response, decoding=options)
    assert output.response.tolist() == [[14, END, END, END, END, END], [5, 6, 7, 8, 9, END]]


def test_asked_not_to_stop_everything_is_kept(call, prompt):
    options = DecodingOptions(gen_length=16, block_length=8, stop_at_eos=False)
    output = call(prompt(), response=given([14, END, 30]), decoding=options)
    assert output.response.shape == (1, 16) and output.response[0, :3].tolist() == [14, END, 30]


def test_masks_in_a_prompt_stay(call, prompt):
    asked = prompt(batch=2)
    asked[:, 5], asked[:, -1], asked[1, 20:24] = MASK, MASK, MASK
    for response in (None, given([14, END], [14, END])):
        output = call(asked, response=response, decoding=DecodingOptions(gen_length=16, block_length=8))
        assert torch.equal(output.sequences[:, :48], asked) and (output.response != MASK).all()
