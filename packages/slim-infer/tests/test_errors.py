import pytest
import torch
from fewstep.errors import UnsupportedModelError
from fewstep.families import causal_lm
from fewstep.families.kv_cache import ARGUMENT
from fewstep_slim_infer import GemFilter, LazyLLM, SlimInfer
from transformers import DynamicCache, StaticCache


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"entry": ()}, "1 or more and ascending"),
        ({"entry": (0, 4)}, "1 or more and ascending"),
        ({"entry": (4, 4)}, "1 or more and ascending"),
        ({"block": 60, "unit": 8}, "unit must divide the block"),
        ({"unit": 0}, "unit must divide the block"),
        ({"window": 0}, "1 or more"),
        ({"tail_blocks": 0}, "1 or more"),
        ({"sink_blocks": -1}, "0 or more"),
        ({"overlap": -0.1}, "overlap=-0.1"),
        ({"window": 0}, "window and tail_blocks"),
        ({"carry": -1}, "carry=-1"),
        ({"carry": 3, "block": 16, "unit": 8}, "carry=3"),
        ({"keep": 1.5}, "share of the prompt"),
        ({"keep": 0.0}, "share of the prompt"),
        ({"keep": 100, "block": 64}, "fewer than sink, tail and one more"),
        ({"keep": (0.2, 0.4)}, "must not grow"),
        ({"decode_keep": (512, 1024)}, "must not grow"),
        ({"entry": (2, 4), "keep": (0.5, 0.25, 0.1)}, "3 budgets for 2 entry layers"),
    ],
    ids=str,
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        SlimInfer(**fields)


def test_bad_fields_of_the_baselines():
    with pytest.raises(ValueError, match="share of the prompt"):
        LazyLLM(keep=2.0)
    with pytest.raises(ValueError, match="0 or more"):
        GemFilter(filter_layer=-1)
    with pytest.raises(ValueError, match="has 6 layers"):
        GemFilter(filter_layer=6, keep=0.5).apply(causal_lm.tiny())


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("mixtral", {"num_local_experts": 2}),
        ("cohere", {}),
        ("gpt_neox", {}),
        ("gpt2", {"n_layer": 2, "n_embd": 64, "n_head": 4}),
        ("mistral", {"sliding_window": 64}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("method", [SlimInfer(), LazyLLM(), GemFilter()], ids=lambda m: m.name)
def test_models_with_another_loop_are_refused_and_left_alone(family, fields, method):
    model = causal_lm.tiny(family, **fields)
    forward = model.forward
    with pytest.raises(UnsupportedModelError, match=type(model).__name__):
        method.apply(model)
    assert model.forward == forward and "forward" not in vars(model)


def test_attention_outside_the_interface_is_refused(slim):
    model = causal_lm.tiny()
    model.set_attn_implementation("eager")
    with pytest.raises(UnsupportedModelError, match="attn_implementation='sdpa'"):
        slim().apply(model)
    model.set_attn_implementation("sdpa")
    slim().apply(model).remove()  # the seams were given back


def test_an_entry_layer_beyond_the_last(slim):
    with pytest.raises(ValueError, match="only layers 0 to 5"):
        slim(entry=(2, 6)).apply(causal_lm.tiny())


IDS = causal_lm.tiny_prompt(60)
MASK = torch.ones_like(IDS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(IDS, labels=IDS), "labels="),
        (lambda m: m(IDS, **{ARGUMENT: DynamicCache()}), "not a DynamicCache"),
        (lambda m: m(IDS, attention_mask=MASK[None, None]), "2-D attention mask"),
        (lambda m: m(IDS, output_hidden_states=True), "no hidden states"),
        (lambda m: m(IDS, attention_mask=MASK.index_fill(1, torch.tensor([59]), 0)), "pad prompts on the left"),
        (lambda m: m(IDS, attention_mask=MASK * 0), "prompt is empty"),
        (lambda m: m(IDS[:, :0]), "prompt is empty"),
        (lambda m: m.generate(IDS, prefill_chunk_size=16, max_new_tokens=2), "prefill_chunk_size"),
        (lambda m: m.generate(IDS, cache_implementation="static", max_new_tokens=2), "cache_implementation='static'"),
        (
            lambda m: m.generate(IDS, **{ARGUMENT: StaticCache(config=m.config, max_cache_len=99)}, max_new_tokens=2),
            "not a StaticCache",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_calls_that_cannot_be_answered(call, message, slim):
    model = causal_lm.tiny()
    dense = model(IDS).logits
    with slim().apply(model), pytest.raises(ValueError, match=message):
        call(model)
    assert torch.equal(model(IDS).logits, dense)


def test_a_query_span_outside_of_the_prompt(slim):
    with slim(query_span=(500, 510)).apply(causal_lm.tiny()) as applied, pytest.raises(ValueError, match="no token"):
        applied.decoder(IDS)


def test_recomputing_takes_one_prompt(slim):
    model = causal_lm.tiny()
    with slim(decode_from="recompute").apply(model), pytest.raises(ValueError, match="one prompt at a time"):
        model(causal_lm.tiny_prompt(60, batch=2))


def test_gemfilter_refuses_padding():
    model = causal_lm.tiny()
    with GemFilter(filter_layer=2, keep=0.5).apply(model), pytest.raises(ValueError, match="one length"):
        model(causal_lm.tiny_prompt(60), attention_mask=torch.arange(60)[None] > 3)
