import pytest
import torch
from fewstep.families import causal_lm
from fewstep.families.causal_lm import prefill_flops
from fewstep.families.kv_cache import ARGUMENT
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, Qwen2Config

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "smollm3"]
P = 150
LLAMA_8B = LlamaConfig(
    num_hidden_layers=32, hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=128256,
)  # fmt: skip
QWEN_7B = Qwen2Config(
    num_hidden_layers=28, hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4,
    vocab_size=152064,
)  # fmt: skip
SMOLLM2 = LlamaConfig(
    num_hidden_layers=30, hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3,
    vocab_size=49152,
)  # fmt: skip


def generate(model, ids, n=32, **options):
    return model.generate(ids, max_new_tokens=n, do_sample=False, eos_token_id=None, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_budget_is_the_dense_model(family, slim):
    model, ids = causal_lm.tiny(family), causal_lm.tiny_prompt(P)
    dense, logits = generate(model, ids), model(ids).logits
    for everything in (1.0, P):
        with slim(keep=everything, entry=(2,)).apply(model):
            assert torch.equal(generate(model, ids), dense)
            torch.testing.assert_close(model(ids).logits, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("entry", [(3,), (2, 4), (1, 3, 5)], ids=str)
def test_equals_dense_with_dropped_keys_masked(family, entry, slim, reference, tokens_of):
    model, ids = causal_lm.tiny(family).double(), causal_lm.tiny_prompt(P, seed=1)
    with slim(entry=entry).apply(model) as applied:
        out = model.generate(
            ids, max_new_tokens=6, do_sample=False, eos_token_id=None, output_logits=True, return_dict_in_generate=True
        )
        kept = [tokens_of(rows[0], 16, P) for rows in applied.report.blocks]
    assert len(kept[-1]) < P
    wanted = reference(model, out.sequences[:, :-1], P, entry, kept)[P - 1 :]
    torch.testing.assert_close(torch.cat(out.logits).double(), wanted, rtol=0, atol=1e-5)


def test_layers_before_the_first_entry_are_dense_bit_for_bit(model, slim):
    ids = causal_lm.tiny_prompt(P)
    dense = model(ids, use_cache=True)[ARGUMENT]
    with slim(entry=(3, 5)).apply(model):
        cache = model(ids, use_cache=True)[ARGUMENT]
    for layer in range(3):
        assert torch.equal(cache.layers[layer].keys, dense.layers[layer].keys)
        assert torch.equal(cache.layers[layer].values, dense.layers[layer].values)


def test_survivors_keep_their_absolute_positions(model, slim, tokens_of):
    """The first slim layer's hidden states are dense's, so its keys must be dense's at the same positions."""
    ids, entry = causal_lm.tiny_prompt(P), 3
    dense = model(ids, use_cache=True)[ARGUMENT].layers[entry].keys
    with slim(entry=(entry,)).apply(model) as applied:
        keys = model(ids, use_cache=True)[ARGUMENT].layers[entry].keys
        kept = tokens_of(applied.report.blocks[0][0], 16, P)
    torch.testing.assert_close(keys, dense[:, :, kept], rtol=0, atol=1e-12)
    assert not torch.allclose(keys[:, :, 1:], dense[:, :, : len(kept) - 1], atol=1e-3)


def test_the_first_generated_token_has_position_p(model, slim):
    seen = []
    hook = model.model.rotary_emb.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(kwargs["position_ids"].flatten().tolist()), with_kwargs=True
    )
    with slim().apply(model):
        generate(model, causal_lm.tiny_prompt(P), 3)
    hook.remove()
    assert seen == [list(range(P)), [P], [P + 1]]


@pytest.mark.parametrize("prompt", [128, 150, 160])
def test_tokens_and_bytes_cached_by_each_layer(prompt, model, slim):
    """``[P] * e_1 + [K_1] * (e_2 - e_1) + ...`` and what was generated; only the last block may be ragged."""
    with slim(keep=(80, 48)).apply(model) as applied:
        generate(model, causal_lm.tiny_prompt(prompt), 5)
        report = applied.report
    short = -prompt % 16
    assert report.layer_tokens == tuple(n + 4 for n in [prompt] * 2 + [80 - short] * 2 + [48 - short] * 2)
    assert report.kv_bytes == sum(report.layer_tokens) * 2 * 2 * 16 * 8
    assert report.seen == prompt + 4


def test_the_report_is_printed_for_people(model, slim):
    with slim(keep=(80, 48)).apply(model) as applied:
        generate(model, causal_lm.tiny_prompt(160), 5)
        assert str(applied.report).splitlines()[0] == "prompt: 48 of 160 tokens reach the last layers (160 → 80 → 48)"
        assert str(applied.report).splitlines()[1].startswith("KV cache: 0.")
        generate(model, causal_lm.tiny_prompt(32), 5)
        assert str(applied.report).startswith("prompt: nothing was dropped, its 32 tokens fit the budget\n")


def test_measured_flops_follow_the_formula(slim):
    model, ids = causal_lm.tiny(), causal_lm.tiny_prompt(160)
    # the counter knows the plain formulation of attention, which computes the masked half too
    with slim(keep=(80, 48)).apply(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids, logits_to_keep=1)
    expected = prefill_flops(model.config, [160, 160, 80, 80, 48, 48], causal=False)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("config", "entry", "keep", "prompt", "expected"),
    [
        (LLAMA_8B, (10, 20, 30), (8192, 4096, 2048), 8192, 1.30),
        (LLAMA_8B, (10, 20, 30), (8192, 4096, 2048), 32768, 2.62),
        (QWEN_7B, (9, 18, 26), (12288, 6144, 4096), 32768, 2.25),
        (SMOLLM2, (15, 21, 28), (1024, 512, 256), 4096, 1.84),
        (SMOLLM2, (15, 21, 28), (2048, 1024, 512), 8192, 1.87),
        (SMOLLM2, (10, 19, 28), (2048, 1024, 512), 8192, 2.59),
    ],
)
def test_the_speed_up_that_the_flops_allow(config, entry, keep, prompt, expected):
    """The table of attainable speed-ups, pruned before the feed-forward."""
    layers = config.num_hidden_layers
    kept = [min([prompt, *(k for e, k in zip(entry, keep, strict=True) if layer >= e)]) for layer in range(layers)]
    ratio = prefill_flops(config, [prompt] * layers) / prefill_flops(config, kept)
    assert ratio == pytest.approx(expected, abs=0.006)


def test_query_span_asks_instead_of_the_end(model, slim):
    ids = causal_lm.tiny_prompt(P)
    with slim(query_span=(40, 44)).apply(model) as applied:
        model(ids)
        by_span = applied.report.blocks
    with slim(query_span=(40 - P, 44 - P)).apply(model) as applied:
        model(ids)
        assert applied.report.blocks == by_span
    assert all(40 // 16 in rows[0] for rows in by_span)


def test_two_models_with_different_settings_do_not_meet(slim):
    one, two, ids = causal_lm.tiny(), causal_lm.tiny(), causal_lm.tiny_prompt(P)
    with slim(keep=0.5).apply(one):
        alone = generate(one, ids, 8)
        with slim(keep=1.0).apply(two):
            assert torch.equal(generate(one, ids, 8), alone)
            dense = generate(two, ids, 8)
    assert torch.equal(generate(one, ids, 8), dense)


@pytest.mark.parametrize("prompt", [1, 3, 15, 16, 17, 33, 97])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_any_prompt_length(prompt, dtype, slim):
    model = causal_lm.tiny().to(dtype)
    with slim().apply(model), torch.inference_mode():
        assert generate(model, causal_lm.tiny_prompt(prompt), 1).shape == (1, prompt + 1)
        out = model.generate(
            causal_lm.tiny_prompt(prompt), max_new_tokens=5, do_sample=False, eos_token_id=list(range(97))
        )
    assert out.shape == (1, prompt + 1)
