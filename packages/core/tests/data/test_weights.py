"""Headers of safetensors files, and configurations that do not belong to them."""

import json
import struct

import pytest
import torch
from fewstep import BadFileError, load
from fewstep.data.weights import check_config, read_shapes
from fewstep.families import causal_lm, wan_vae
from safetensors.torch import save_file


def test_shapes_are_read_from_all_files_without_their_weights(tmp_path):
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(4), "c": torch.tensor(1.0)}, tmp_path / "two.safetensors")
    assert read_shapes(tmp_path) == {"a": (2, 3), "b": (4,), "c": ()}


@pytest.mark.parametrize(
    "content",
    [b"", b"\x01", struct.pack("<Q", 2**63), struct.pack("<Q", 4) + b"{}}{", struct.pack("<Q", 8) + b'{"a": 1}'],
    ids=["empty", "short", "huge header", "no JSON", "no shapes"],
)
def test_a_damaged_header_is_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(BadFileError, match="model.safetensors is damaged"):
        read_shapes(tmp_path)


def test_nested_numbers_are_compared_and_token_ids_are_not(tmp_path):
    shapes = {"a": (10, 10), "b": (10,)}
    check_config({"num_hidden_layers": 2, "eos_token_id": 128009, "text": {"hidden_size": 110}}, shapes, tmp_path)
    for config in ({"num_hidden_layers": 3}, {"text": {"hidden_size": 111}}, {"channels": [4, 111]}, {"d_model": -2}):
        with pytest.raises(BadFileError, match="2 tensors of 110 numbers"):
            check_config(config, shapes, tmp_path)


@pytest.mark.parametrize("model", ["llm", "vae"])
@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**6, "num_res_blocks": 10**5},
        {"hidden_size": 10**12, "base_dim": 10**12},
        {"hidden_size": -1, "base_dim": -1},
        {"head_dim": 7, "z_dim": 5},
        {"hidden_size": "wide", "base_dim": None},
        {"num_attention_heads": 0, "dim_mult": []},
        None,
        3,
    ],
    ids=str,
)
def test_an_absurd_configuration_is_one_sentence_before_anything_is_built(tmp_path, model, change):
    (causal_lm.tiny() if model == "llm" else wan_vae.tiny()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change if isinstance(change, dict) else change))
    with pytest.raises(BadFileError) as refusal:
        load(tmp_path)
    assert "\n" not in str(refusal.value) and str(tmp_path) in str(refusal.value)
