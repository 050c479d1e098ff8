"""Batches, termination, isolation, and what users ask of one call."""

import pytest
import torch
from fewstep.kernels.check import nan_filled
from fewstep_focus_dllm import DecodingOptions, FastDLLM, FastDLLMPublished, SparseDLLM, Vanilla
from fewstep_focus_dllm.generation import current_generate

MASK = 49
BASELINES = [Vanilla(), FastDLLM(), FastDLLM(cache="prefix"), FastDLLMPublished(), SparseDLLM()]


def decode(model, method, ids, mask=None, **fields):
    fields = {"gen_length": 16, "block_length": 8, "stop_at_eos": False, **fields}
    with method.apply(model):
        return current_generate(model)(ids, mask, decoding=DecodingOptions(**fields))


@pytest.fixture(
    params=range(len(BASELINES) + 2), ids=[*(m.name for m in BASELINES), "focus-dllm", "focus-dllm partial"]
)
def method(request, focus):
    """Every method of the package."""
    return [*BASELINES, focus(), focus(full_every=2, units=True, prompt_block=16)][request.param]


def test_left_padded_batches_equal_single_runs(model, prompt, method):
    short, long = prompt(37, seed=1), prompt(51, seed=2)
    batch = torch.full((2, 51), 0)
    batch[0, 14:], batch[1] = short[0], long[0]
    mask = (torch.arange(51) >= torch.tensor([[14], [0]])).long()
    both = decode(model, method, batch, mask)
    for row, ids in enumerate((short, long)):
        alone = decode(model, method, ids)
        if isinstance(method, SparseDLLM):  # keeps a share of the padded length
            assert (both.response[row] != MASK).all()
            continue
        assert torch.equal(both.response[row], alone.response[0])


def test_sequences_finish_blocks_at_different_steps(model, prompt, method):
    batch = prompt(48, batch=3)
    together = decode(model, method, batch, threshold=0.12)
    assert (together.response != MASK).all()
    for row in range(3):
        alone = decode(model, method, batch[row : row + 1], threshold=0.12)
        assert torch.equal(together.response[row], alone.response[0])


def test_padding_on_the_right_is_moved_to_the_left(model, prompt, focus):
    left, right = torch.zeros(1, 51, dtype=torch.long), torch.zeros(1, 51, dtype=torch.long)
    left[0, 14:], right[0, :37] = prompt(37)[0], prompt(37)[0]
    there = torch.arange(51)[None]
    first = decode(model, focus(), left, (there >= 14).long())
    second = decode(model, focus(), right, (there < 37).long())
    assert torch.equal(first.sequences, second.sequences)


def test_a_model_that_prefers_the_mask_ends(model, prompt, method):
    with torch.no_grad():
        model.lm_head.weight[MASK] = 50 * model.lm_head.weight.mean(0).sign()
        model.model.norm.weight.fill_(1.0)
    output = decode(model, method, prompt())
    assert (output.response != MASK).all()
    assert len(output.stats.step_seconds) + len(output.stats.refresh_seconds) <= 16


@pytest.mark.parametrize("steps", [1, 3, 5, 16, 40])
def test_fewer_steps_than_tokens_and_steps_that_do_not_divide(model, prompt, focus, steps):
    output = decode(model, focus(), prompt(), steps=steps)
    assert (output.response != MASK).all()
    taken = len(output.stats.step_seconds) + len(output.stats.refresh_seconds)
    assert taken == min(16, max(2, steps))


def test_a_length_that_blocks_do_not_divide(model, prompt, focus):
    output = decode(model, focus(), prompt(), gen_length=19)
    assert output.response.shape == (1, 19) and (output.response != MASK).all()


def test_given_tokens_of_the_response_stay(model, prompt, focus):
    given = torch.full((1, 16), MASK)
    given[0, ::2] = torch.arange(10, 18)
    with focus().apply(model):
        decoding = DecodingOptions(gen_length=16, block_length=8, stop_at_eos=False)
        output = current_generate(model)(prompt(), response=given, decoding=decoding)
    assert torch.equal(output.response[0, ::2], given[0, ::2]) and (output.response != MASK).all()


def test_two_generations_at_once_do_not_mix(model, prompt, method):
    """A second one runs to its end inside the first, at a block border."""
    first, second = prompt(seed=3), prompt(40, seed=4)
    alone = decode(model, method, first), decode(model, method, second)
    inside = []
    decoding = DecodingOptions(gen_length=16, block_length=8, stop_at_eos=False)
    with method.apply(model):
        run = current_generate(model)
        outer = run(first, decoding=decoding, on_block=lambda _: inside.append(run(second, decoding=decoding)))
    assert torch.equal(outer.response, alone[0].response)
    assert all(torch.equal(output.response, alone[1].response) for output in inside)


def test_no_memory_is_read_before_it_is_written(model, prompt, method):
    wanted = decode(model, method, prompt(48, batch=2), threshold=0.12)
    with nan_filled():
        output = decode(model, method, prompt(48, batch=2), threshold=0.12)
    assert torch.equal(output.response, wanted.response)


def test_finished_blocks_are_streamed(model, prompt, focus):
    blocks = []
    with focus().apply(model):
        decoding = DecodingOptions(gen_length=20, block_length=8, stop_at_eos=False)
        output = current_generate(model)(
            prompt(), decoding=decoding, on_block=lambda tokens: blocks.append(tokens.clone())
        )
    assert [b.shape[1] for b in blocks] == [8, 8, 4]
    assert torch.equal(torch.cat(blocks, 1), output.response)


def test_it_stops_at_an_end_token_with_nothing_masked_before_it(llada, prompt, focus):
    given = torch.full((1, 32), MASK)
    given[0, 5] = llada.config.eos_token_id
    with focus().apply(llada):
        output = current_generate(llada)(
            prompt(), response=given, decoding=DecodingOptions(gen_length=32, block_length=8)
        )
    assert output.stats.refreshes == 1
    assert (output.response[0, :5] != MASK).all()
    assert output.response[0, 5:].tolist() == [llada.config.eos_token_id]


def test_a_bias_makes_end_tokens_rare_or_certain(llada, prompt, focus):
    eos = llada.config.eos_token_id
    assert (decode(llada, focus(), prompt(), eos_bias=1000.0).response == eos).all()
    assert not (decode(llada, focus(), prompt(), eos_bias=-1000.0).response == eos).any()


def test_sampling_repeats_with_its_seed(model, prompt, focus):
    first, again, other = (decode(model, focus(), prompt(), temperature=1.0, seed=s).response for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("remasking", ["margin", "entropy", "random"])
def test_other_notions_of_confidence(model, prompt, focus, remasking):
    assert (decode(model, focus(), prompt(), remasking=remasking).response != MASK).all()


def test_extras(model, prompt, focus):
    """Refreshes inside a block, dense steps after one, a guard, a suffix window, short prompts by the dual cache."""
    plain = decode(model, focus(), prompt()).stats
    assert decode(model, focus(refresh_every=3), prompt()).stats.refreshes == 2 + 2 * 2
    assert len(decode(model, focus(delay_sparse=2), prompt()).stats.kept) == len(plain.kept) - 2 * 2
    assert max(decode(model, focus(threshold_guard=1e9), prompt()).stats.rows) > max(plain.rows)
    assert (decode(model, focus(suffix=0), prompt()).response != MASK).all()
    short = decode(model, focus(min_prompt=49), prompt())
    assert torch.equal(short.response, decode(model, FastDLLM(), prompt()).response)


def test_partial_refreshes_take_the_place_of_full_ones(model, prompt, focus):
    stats = decode(model, focus(full_every=2), prompt(), gen_length=32).stats
    assert (stats.refreshes, len(stats.partial_rows)) == (2, 2)


@pytest.mark.parametrize("length", [1, 2, 7, 9])
def test_prompts_around_the_size_of_a_block(model, prompt, focus, length):
    """A prompt without a whole block is all tail, and nothing of it is dropped."""
    output = decode(model, focus(prompt_block=8, sinks=64), prompt(length))
    assert (output.response != MASK).all()
    if length < 8:
        assert max(output.stats.kept) == length
