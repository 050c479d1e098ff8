"""Classifier-free guidance of every decoder, against plain twins that compute everything twice."""

import pytest
import torch
from fewstep_focus_dllm import DecodingOptions, FastDLLM, FastDLLMPublished, SparseDLLM, Vanilla, generate
from fewstep_focus_dllm.generation import current_generate

MASK, SCALE = 49, 1.5


@pytest.fixture
def decode():
    """Decode 16 tokens in blocks of 8 with guidance."""

    def decode(model, method, ids, mask=None, **fields):
        fields = {"gen_length": 16, "block_length": 8, "stop_at_eos": False, "cfg_scale": SCALE, **fields}
        with method.apply(model):
            return current_generate(model)(ids, mask, decoding=DecodingOptions(**fields))

    return decode


METHODS = ["vanilla", "dual", "prefix", "published", "sparse", "focus", "focus-refreshed"]


@pytest.fixture(params=METHODS)
def method(request, focus):
    """Every method of the package."""
    baselines = [Vanilla(), FastDLLM(), FastDLLM(cache="prefix"), FastDLLMPublished(), SparseDLLM()]
    return [*baselines, focus(), focus(full_every=2, units=True)][METHODS.index(request.param)]


def test_exact_decoders_give_the_tokens_of_the_twin(model, prompt, decode, focus, reference):
    wanted, _ = reference.vanilla(model, prompt()[0], 16, 8, scale=SCALE)
    unguided, _ = reference.vanilla(model, prompt()[0], 16, 8)
    assert not torch.equal(wanted, unguided)
    for exact in (Vanilla(), focus().identity()):
        assert torch.equal(decode(model, exact, prompt()).response[0], wanted)
    options = DecodingOptions(gen_length=16, block_length=8, stop_at_eos=False, cfg_scale=SCALE)
    assert torch.equal(generate(model, prompt(), decoding=options).response[0], wanted)


def test_the_dual_cache_gives_the_tokens_of_its_twin(model, prompt, decode, reference):
    wanted, _ = reference.dual(model, prompt()[0], 16, 8, scale=SCALE)
    for dual in (FastDLLM(), FastDLLMPublished()):
        assert torch.equal(decode(model, dual, prompt()).response[0], wanted)


@pytest.mark.parametrize("method", METHODS[1:], indirect=True)  # the twin of vanilla is above
def test_each_step_combines_a_pass_with_and_one_without_what_was_given(model, prompt, decode, method, watched):
    with watched() as passes:
        output = decode(model, method, prompt())
    for known, blind in zip(passes[::2], passes[1::2], strict=True):
        assert torch.equal(known.tokens[:, :48], prompt()) and (blind.tokens[:, :48] == MASK).all()
        assert torch.equal(known.tokens[:, 48:], blind.tokens[:, 48:])
    answers = [known.tokens for known, _ in zip(passes[::2], passes[1::2], strict=True)]
    for (known, blind), after in zip(
        zip(passes[::2], passes[1::2], strict=True), [*answers[1:], output.sequences], strict=True
    ):
        guided = {}
        for row, position in enumerate(known.about.positions[0].tolist()):
            if known.about.valid[0, row]:
                (same,) = (blind.about.positions[0] == position).nonzero()[0]
                z, un = known.about.logits[0, row], blind.about.logits[0, same]
                z = un + (SCALE + 1) * (z - un)
                z[MASK] = -torch.inf
                guided[position] = z.softmax(-1).max(-1)
        best = max(guided, key=lambda position: guided[position].values)
        assert after[0, best] == guided[best].indices


@pytest.mark.parametrize("method", [name for name in METHODS if name != "sparse"], indirect=True)  # a share of all
def test_padded_batches_equal_single_runs(model, prompt, decode, method):
    batch, there = torch.zeros(2, 51, dtype=torch.long), torch.arange(51)
    batch[0, 14:], batch[1] = prompt(37, seed=1)[0], prompt(51, seed=2)[0]
    both = decode(model, method, batch, (there >= torch.tensor([[14], [0]])).long(), threshold=0.12)
    for row, ids in enumerate((prompt(37, seed=1), prompt(51, seed=2))):
        assert torch.equal(both.response[row], decode(model, method, ids, threshold=0.12).response[0])


def test_guidance_runs_twice_as_many_passes_and_none_of_its_own_when_off(model, prompt, decode, method):
    twice, once = decode(model, method, prompt()).stats, decode(model, method, prompt(), cfg_scale=0.0).stats
    assert twice.refreshes == 2 * once.refreshes and len(twice.rows) == 2 * len(once.rows)
    assert twice.steps == once.steps


def test_given_tokens_of_the_response_are_hidden_too(llada, prompt, watched):
    response = torch.full((1, 16), MASK)
    response[0, ::2] = torch.arange(10, 18)
    options = DecodingOptions(gen_length=16, block_length=8, stop_at_eos=False, cfg_scale=SCALE)
    with watched() as passes:
        output = generate(llada, prompt(), response=response, decoding=options)
    assert torch.equal(output.response[0, ::2], response[0, ::2])
    assert (passes[1].tokens == MASK).all() and not (passes[0].tokens[:, :48] == MASK).any()


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_a_scale_out_of_range_is_refused(scale):
    with pytest.raises(ValueError, match="cfg_scale must be 0 or more"):
        DecodingOptions(cfg_scale=scale)
