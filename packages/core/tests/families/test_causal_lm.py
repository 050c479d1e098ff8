"""Llama-like language models: which ones belong, prefill and decode against `generate`, costs, and inputs of `run`."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from fewstep import Applied, BadFileError, FewstepError, Loaded, Method, UnsupportedModelError
from fewstep.families import causal_lm
from fewstep.families.attention import QueryCapture, capture_queries, wrap_attention
from fewstep.families.kv_cache import ARGUMENT, GrowingLayer, cache_sizes, growing
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "smollm3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_models_belong(family: str):
    model = causal_lm.tiny(family)
    assert type(model).__name__ in causal_lm.SUPPORTED and causal_lm.check(model) is model.model


@pytest.mark.parametrize(
    ("family", "fields", "reason"),
    [
        ("mixtral", {"num_local_experts": 2}, "differ from Llama's"),
        ("cohere", {}, "differ from Llama's"),
        ("gpt2", {"n_layer": 2, "n_embd": 64, "n_head": 4}, "no causal LM of Llama-like layers"),
        ("mistral", {"sliding_window": 64}, "sliding-window layers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_others_are_refused_by_name(family: str, fields: dict, reason: str):
    model = causal_lm.tiny(family, **fields)
    with pytest.raises(UnsupportedModelError, match=f"{type(model).__name__} .*{reason}"):
        causal_lm.check(model)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_prefill_and_greedy_give_what_generate_gives(family: str):
    model, ids = causal_lm.tiny(family), causal_lm.tiny_prompt(30)
    wanted = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, 30:].tolist()
    logits, cache, seconds = causal_lm.prefill(model, ids)
    assert causal_lm.greedy(model, logits, cache, 12) == wanted and seconds > 0
    assert cache.get_seq_length() == 30 + 11


@torch.inference_mode()
def test_known_tokens_are_scored_as_in_one_pass():
    model, ids = causal_lm.tiny().double(), causal_lm.tiny_prompt(40)
    wanted = model(ids).logits[0, 29:-1]
    logits, cache, _ = causal_lm.prefill(model, ids[:, :30])
    steps, _ = causal_lm.decode_known(model, ids[:, 30:], cache)
    torch.testing.assert_close(torch.cat([logits, *steps]), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_the_two_halves_are_the_layer(family: str):
    model, ids = causal_lm.tiny(family), causal_lm.tiny_prompt(20)
    hidden, layer = model.model.embed_tokens(ids), model.model.layers[0]
    rope = model.model.rotary_emb(hidden, position_ids=torch.arange(20)[None])
    wanted, capture = layer(hidden, position_embeddings=rope, attention_mask=None), QueryCapture()
    with Applied() as undo:
        wrap_attention(undo, model, "capture", capture_queries)
        attended = causal_lm.attend(layer, hidden, rope, None, capture=capture)
    assert torch.equal(causal_lm.feed_forward(layer, attended), wanted)
    assert capture.query.shape == (1, 4, 20, 16) and capture.keys.shape == (1, 2, 20, 16)


@torch.inference_mode()
def test_counted_operations_follow_the_formula():
    model, ids = causal_lm.tiny(), causal_lm.tiny_prompt(160)
    # the counter knows the plain formulation of attention, which computes the masked half too
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids, logits_to_keep=1)
    expected = causal_lm.prefill_flops(model.config, [160] * 6, causal=False)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)
    assert causal_lm.prefill_flops(model.config, [160] * 6) < expected


def test_a_growing_layer_equals_concatenation():
    layer, parts = GrowingLayer(), []
    for n in (5, 1, 1, 70, 1, 200, 3):
        parts.append(torch.randn(2, 2, 2, n, 8))  # keys and values of two rows and two heads
        for held, states in zip(layer.update(*parts[-1]), torch.cat(parts, dim=3), strict=True):
            assert torch.equal(held, states)
    layer.crop(-203)
    assert torch.equal(layer.keys, torch.cat(parts, dim=3)[0, :, :, :-203])
    layer.select_rows(torch.tensor([1, 0, 1]))
    assert torch.equal(layer.values, torch.cat(parts, dim=3)[1, [1, 0, 1], :, :-203])


@torch.inference_mode()
def test_a_filled_cache_grows_in_place_with_the_same_content():
    model, ids = causal_lm.tiny(), causal_lm.tiny_prompt(30)
    dynamic = model(ids, use_cache=True)[ARGUMENT]
    keys = [layer.keys.clone() for layer in dynamic.layers]
    cache = growing(dynamic)
    assert growing(cache) is cache
    assert all(torch.equal(layer.keys, k) for layer, k in zip(cache.layers, keys, strict=True))
    assert cache_sizes(cache) == {"kv_bytes": 6 * 2 * 2 * 30 * 16 * 4, "tokens_per_layer": 30.0}


@dataclass(frozen=True, kw_only=True)
class Reader(Method):
    """Does nothing but tell its settings."""

    name: ClassVar[str] = "reader"
    seams: ClassVar[frozenset[str]] = frozenset()
    query_span: tuple[int, int] | None = None
    """Question."""

    def apply(self, model: Any) -> Applied:
        return Told()


class Told(Applied):
    def stats(self) -> dict[str, Any]:
        return {"told": {"a": 1, "b": 2}}


@pytest.fixture
def loaded() -> Loaded:
    """A tiny Llama with a tokenizer of words ``w3`` to ``w96``."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"<pad>": 0, "<unk>": 1, "<end>": 2}
    words = Tokenizer(models.WordLevel({**special, **{f"w{i}": i for i in range(3, 97)}}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="<end>")
    return Loaded(model=causal_lm.tiny(), name="tiny", processor=tokenizer, weights="random")


def test_an_answer_streams_and_is_saved_with_its_facts(loaded: Loaded, tmp_path, capsys):
    (tmp_path / "book.txt").write_text("w10 w11 w12 w13")
    inputs = causal_lm.Ask(
        prompt="w20 w21", prompt_file=str(tmp_path / "book.txt"), max_new_tokens=5, output=tmp_path / "answer.json"
    )
    inputs(loaded, Reader())
    ids = torch.tensor([[10, 11, 12, 13, 20, 21]])
    wanted = loaded.model.generate(ids, max_new_tokens=5, do_sample=False)[0, 6:]
    said, saved = capsys.readouterr().out, json.loads((tmp_path / "answer.json").read_text())
    assert saved["answer"] == loaded.processor.decode(wanted, skip_special_tokens=True) and saved["answer"] in said
    assert saved["fields"] == {"query_span": [-2, 6]} and saved["prompt tokens"] == 6
    assert saved["told"] == {"a": 1, "b": 2} and "told: a 1, b 2" in said


def test_sampling_is_a_function_of_the_seed(loaded: Loaded, tmp_path):
    answers = []
    for seed in (0, 0, 1):
        file = tmp_path / "answer.json"
        causal_lm.Ask(prompt="w20", max_new_tokens=8, temperature=1.0, seed=seed, output=file)(loaded, Reader())
        answers.append(json.loads(file.read_text())["answer"])
    assert answers[0] == answers[1] != answers[2]


def test_the_document_may_come_from_standard_input(loaded: Loaded, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"w10 w11")))
    causal_lm.Ask(prompt="w20", prompt_file="-", max_new_tokens=2)(loaded, Reader())
    assert "prompt tokens: 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"prompt": " "}, ValueError, "prompt is empty"),
        ({"prompt": "w9 " * 600}, ValueError, "tiny has 512"),
        ({"prompt": "x", "prompt_file": "missing.txt"}, BadFileError, "missing.txt"),
        ({"prompt": "x", "prompt_file": "latin-1.txt"}, BadFileError, "not UTF-8"),
        ({"prompt": "x", "output": "no/such/folder/a.json"}, FewstepError, "no/such/folder"),
    ],
    ids=["empty", "too-long", "missing", "latin-1", "unwritable"],
)
def test_bad_inputs_are_named(loaded: Loaded, tmp_path, monkeypatch, fields: dict, error: type, message: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin-1.txt").write_bytes(b"caf\xe9")
    if "output" in fields:
        fields = {**fields, "output": tmp_path / fields["output"]}
    with pytest.raises(error, match=message):
        causal_lm.Ask(**fields)(loaded, Reader())


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(UnsupportedModelError, match="no tokenizer"):
        causal_lm.Ask(prompt="x")(Loaded(model=causal_lm.tiny(), name="tiny"), Reader())
