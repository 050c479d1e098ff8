"""Every step of every decoder against plain twins."""

from dataclasses import replace

import pytest
import torch
from fewstep.families import masked_lm
from fewstep_focus_dllm import DecodingOptions, FastDLLM, FastDLLMPublished, Vanilla, generate
from fewstep_focus_dllm.decoding import State
from fewstep_focus_dllm.generation import current_generate
from fewstep_focus_dllm.method import FocusDecoder
from fewstep_focus_dllm.sparse import SparseAttention


@pytest.fixture
def run(watched):
    """Decode with a method applied; the output, and every forward pass."""

    def call(model, method, ids, decoding):
        with method.apply(model), watched() as seen:
            return current_generate(model)(ids, decoding=decoding), seen

    return call


def test_the_unchanged_model_decodes_as_the_plain_twin(model, prompt, decoding, reference, watched):
    wanted, logits = reference.vanilla(model, prompt()[0], 16, 8)
    with watched() as seen:
        output = current_generate(model)(prompt(), decoding=decoding)
    assert torch.equal(output.response[0], wanted)
    for (_, about, *_), step in zip(seen, logits, strict=True):
        torch.testing.assert_close(about.logits[0], step[about.positions[0]], rtol=1e-8, atol=1e-8)


def test_everything_active_and_kept_equals_vanilla(model, prompt, decoding, focus, reference, run):
    wanted, logits = reference.vanilla(model, prompt()[0], 16, 8)
    output, seen = run(model, focus().identity(), prompt(), decoding)
    assert torch.equal(output.response[0], wanted)
    for (_, about, *_), step in zip(seen, logits, strict=True):
        torch.testing.assert_close(about.logits[0], step[about.positions[0]], rtol=1e-5, atol=1e-5)


def test_vanilla_as_published_gives_the_same_tokens(model, prompt, decoding, run):
    assert torch.equal(
        run(model, Vanilla(), prompt(), decoding)[0].response,
        current_generate(model)(prompt(), decoding=decoding).response,
    )


@pytest.mark.parametrize("method", [FastDLLM(), FastDLLMPublished()], ids=lambda m: m.name)
def test_the_dual_cache_equals_the_plain_twin(model, prompt, decoding, method, reference, run):
    wanted, logits = reference.dual(model, prompt()[0], 16, 8)
    output, seen = run(model, method, prompt(), decoding)
    assert torch.equal(output.response[0], wanted)
    cached = [one.about for one in seen if one.rows is not None]
    assert len(cached) == len(logits) == 14
    for about, step in zip(cached, logits, strict=True):
        place = (about.positions[0] - 48) % 8
        torch.testing.assert_close(about.logits[0], step[place], rtol=1e-8, atol=1e-8)


class WholeBlockDecoder(FocusDecoder):
    """Focus-dLLM whose active positions are those of the dual cache: the block, decoded or not."""

    def _active(self):
        super()._active()
        block = torch.zeros_like(self.state.tokens, dtype=torch.bool)
        block[:, self.state.block.start - self.shift : self.state.block.end] = True
        return block, block


def test_the_whole_block_active_and_the_whole_prompt_kept_equals_the_dual_cache(
    model, prompt, decoding, focus, reference, watched
):
    wanted, logits = reference.dual(model, prompt()[0], 16, 8)
    method = focus(keep=1.0)

    def make(model, state):
        return WholeBlockDecoder(model, state, replace(method, window=1))

    with method.apply(model), watched() as seen:
        output = generate(model, prompt(), decoding=decoding, make=make)
    assert torch.equal(output.response[0], wanted)
    cached = [one.about for one in seen if isinstance(one.plan, SparseAttention)]
    assert len(cached) == len(logits) == 14
    for about, step in zip(cached, logits, strict=True):
        place = (about.positions[0] - 48) % 8
        torch.testing.assert_close(about.logits[0], step[place], rtol=1e-5, atol=1e-5)


def test_a_step_right_after_a_refresh_gives_the_rows_of_a_full_pass(model, prompt, focus):
    """With unchanged tokens the cache is exact, whatever is active."""
    ids = prompt()
    decoding = DecodingOptions(gen_length=16, block_length=8, stop_at_eos=False)
    for window in (3, 5):
        tokens = torch.cat([ids, torch.full((1, 16), 49)], 1)
        state = State(tokens, torch.zeros(1, dtype=torch.long), 48, decoding, mask_token=49, eos=())
        method = focus(keep=1.0, window=window)
        with method.apply(model), torch.no_grad():
            decoder = method.decoder(model, state)
            state.open(decoding.blocks(48)[0])
            full = decoder.first_step()
            state.confidence = torch.rand(1, 8, dtype=torch.float64)  # nothing was unmasked
            some = decoder.later_step()
        where = some.positions[0] - full.positions[0, 0]
        torch.testing.assert_close(some.logits[0], full.logits[0, where], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "fields", [{}, {"units": True}, {"aggregate": "mean"}, {"aggregate": "max", "window": 5}], ids=str
)
def test_sparse_layers_equal_dense_ones_with_the_dropped_prompt_masked(
    model, prompt, decoding, focus, fields, reference, run
):
    """Rows, cache and visible keys of each cached step, replayed through the plain twin."""
    method = focus(**fields)
    _, seen = run(model, method, prompt(51), decoding)
    store, checked = None, 0
    for tokens, about, plan, rows in seen:
        if rows is None:
            _, store = reference.forward(model, tokens[0])
            continue
        rows = rows[0]
        visible = [None] * 2 + [mask_from(plan.tokens(c)[0], len(tokens[0]), len(rows)) for c in plan.selected]
        logits, _ = reference.forward(model, tokens[0], visible=visible, rows=rows, cached=store)
        places = (rows + masked_lm.logit_shift(model.config)).tolist()
        index = [places.index(p) for p in about.positions[0].tolist()]
        torch.testing.assert_close(about.logits[0], logits[index], rtol=1e-6, atol=1e-6)
        assert plan.selected and all(read < 51 + 16 for read in plan.keys_read)
        checked += 1
    assert checked == 14


def mask_from(used, length, rows):
    visible = torch.zeros(length, dtype=torch.bool)
    visible[used[used >= 0]] = True
    return visible.expand(rows, length)


def test_what_sparse_layers_read(llada, prompt, decoding, focus, run):
    """The whole response, the ragged tail, and sinks that are the same in every sparse layer of a step."""
    _, seen = run(llada, focus(), prompt(51), decoding)
    for plan in (one.plan for one in seen if one.rows is not None):
        assert len(plan.selected) == 2 and len(plan.sinks[0]) == 3
        for used in map(plan.tokens, plan.selected):
            assert {48, 49, 50, *range(51, 67), *plan.sinks[0].tolist()} <= set(used[0].tolist())


def test_sinks_have_the_largest_mass_of_the_last_dense_layer(llada, prompt, decoding, focus, reference, run):
    """Against attention probabilities of the plain twin."""
    _, seen = run(llada, focus(sinks=4), prompt(), decoding)
    tokens, _, plan, rows = seen[1]
    _, store = reference.forward(llada, seen[0].tokens[0])
    _, after = reference.forward(llada, tokens[0], rows=rows[0], cached=store)
    query = queries(reference, llada, tokens[0], rows[0], reference.forward(llada, seen[0].tokens[0])[1], layer=1)
    keys = after[1][0].repeat_interleave(2, 0)
    mass = (query @ keys.mT / 8**0.5).softmax(-1).mean((0, 1))[:48]
    assert sorted(plan.sinks[0].tolist()) == sorted(mass.argsort(descending=True)[:4].tolist())


def queries(reference, model, tokens, rows, store, layer):
    """Rotated queries of a layer, taken by a hook on the model's own projection."""
    outputs = []
    handle = model.model.layers[layer].self_attn.q_proj.register_forward_hook(lambda m, i, o: outputs.append(o))
    reference.forward(model, tokens, rows=rows, cached=store)
    handle.remove()
    cos, sin = model.model.rotary_emb(outputs[0][None], rows[None])
    return reference.rotate(outputs[0].view(len(rows), -1, 8).transpose(0, 1), cos[0], sin[0])


def test_dream_computes_the_position_before_each_focus_position(prompt, decoding, focus, run):
    _, seen = run(masked_lm.tiny("dream").double(), focus(), prompt(), decoding)
    for _, about, _, rows in seen:
        computed = set(range(64)) if rows is None else set(rows[0].tolist())
        assert {p - 1 for p in about.positions[0][about.valid[0]].tolist()} <= computed
    starts = [one.about.positions[0, 0].item() for one in seen if one.rows is None]
    assert starts == [48, 56]  # the first position of a block asks the last row of the prompt, or of the block before


def test_dream_with_a_window_of_one_is_refused(focus):
    with pytest.raises(ValueError, match="3 or more"):
        focus(window=1).apply(masked_lm.tiny("dream"))


def test_the_published_caches_give_the_tokens_of_the_tuned_ones(model, prompt, decoding, run):
    for cache in ("dual", "prefix"):
        tuned, published = (run(model, m(cache=cache), prompt(), decoding)[0] for m in (FastDLLM, FastDLLMPublished))
        assert torch.equal(tuned.response, published.response) and tuned.stats.rows == published.stats.rows
