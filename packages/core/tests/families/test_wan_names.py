"""Both directions on real Wan transformers, and against the conversion of native names in diffusers itself."""

from __future__ import annotations

import pytest
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from fewstep.errors import BadFileError
from fewstep.families import wan
from fewstep.families.wan_names import are_native, to_diffusers, to_native

WITH_IMAGE = {"image_dim": 6, "added_kv_proj_dim": 24, "pos_embed_seq_len": 4}


@pytest.mark.parametrize("overrides", [{}, WITH_IMAGE, {"num_layers": 11}], ids=["t2v", "i2v", "deep"])
def test_every_parameter_goes_there_and_back(overrides):
    names = list(wan.tiny(**overrides).state_dict())
    native = [to_native(name) for name in names]
    assert len(set(native)) == len(names) and [to_diffusers(name) for name in native] == names
    assert are_native(native) and not are_native(names)
    ours = {old: new for old, new in zip(native, names, strict=True) if not old.endswith("emb_pos")}  # not in theirs
    theirs = convert_wan_transformer_to_diffusers({name: name for name in ours})
    assert {old: new for new, old in theirs.items()} == ours


@pytest.mark.parametrize(
    ("native", "diffusers"),
    [
        ("blocks.3.norm3.weight", "blocks.3.norm2.weight"),
        ("blocks.3.norm2.weight", "blocks.3.norm3.weight"),
        ("blocks.12.self_attn.o.lora_A.weight", "blocks.12.attn1.to_out.0.lora_A.weight"),
        ("blocks.0.cross_attn.norm_k_img.weight", "blocks.0.attn2.norm_added_k.weight"),
        ("blocks.0.ffn.2.bias", "blocks.0.ffn.net.2.bias"),
        ("blocks.0.modulation", "blocks.0.scale_shift_table"),
        ("head.modulation", "scale_shift_table"),
        ("head.head.bias", "proj_out.bias"),
        ("time_projection.1.weight", "condition_embedder.time_proj.weight"),
        ("text_embedding.2.weight", "condition_embedder.text_embedder.linear_2.weight"),
        ("blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
    ],
)
def test_names_of_known_parameters(native, diffusers):
    assert to_diffusers(native) == diffusers and to_native(diffusers) == native


@pytest.mark.parametrize(
    "name",
    ["blocks.0.attn1.to_q.weight", "blocks.x.norm3.weight", "self_attn.q.weight", "head", "blocks.0.ffn.1.bias", ""],
)
def test_a_strange_native_name_is_refused(name):
    with pytest.raises(BadFileError, match="no native name"):
        to_diffusers(name)


@pytest.mark.parametrize("name", ["blocks.0.self_attn.q.weight", "blocks.0.attn1.to_qkv.weight", "norm_out.weight"])
def test_a_strange_diffusers_name_is_refused(name):
    with pytest.raises(BadFileError, match="no diffusers name"):
        to_native(name)
