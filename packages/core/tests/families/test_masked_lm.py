"""LLaDA and Dream without their own code: the same function as a plain implementation, and strict about files."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from fewstep import BadFileError, UnsupportedModelError, load
from fewstep.families import causal_lm, llada_format, masked_lm
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

LLADA_8B = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_llada.LLaDAModelLM"},
    "d_model": 4096,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "max_sequence_length": 4096,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-05,
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "block_type": "llama",
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "weight_tying": False,
    "multi_query_attention": None,
    "mask_token_id": 126336,
    "eos_token_id": 126081,
    "pad_token_id": 126081,
}
DREAM_7B = {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-06,
    "use_sliding_window": False,
    "sliding_window": None,
    "use_mrope": False,
    "tie_word_embeddings": False,
    "mask_token_id": 151666,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "pad_token_id": 151643,
}


def write(family: str, folder: Path, *, shard: str = "5GB", **overrides: object) -> object:
    """A tiny random model, written to `folder` as its authors would; returned, too."""
    model, source = masked_lm.tiny(family, **overrides), torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim == 1:  # norms and biases, which start as ones and zeros
            weight.data += 0.2 * torch.randn(weight.shape, generator=source)
    config = model.config
    if family == "llada":
        llada_format.save_llada(model, folder, shard=shard)
    else:
        folder.mkdir()
        same = {name: getattr(config, name) for name in DREAM_7B if hasattr(config, name) and name != "rope_scaling"}
        rates = {"rope_theta": config.rope_parameters["rope_theta"], "num_key_value_heads": config.num_key_value_heads}
        fields = {**DREAM_7B, **same, **rates, "model_type": "Dream", "architectures": ["DreamModel"]}
        (folder / "config.json").write_text(json.dumps(fields))
        save_file(model.state_dict(), folder / "model.safetensors")
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny LLaDA to damage."""
    write("llada", tmp_path / "model")
    return tmp_path / "model"


def ids(batch: int = 2, length: int = 23) -> Tensor:
    return torch.randint(3, 49, (batch, length), generator=torch.Generator().manual_seed(1))


def plain(weights: dict[str, Tensor], config: dict, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
    """Logits by nothing but the formulas, from a LLaDA or Dream checkpoint; `keep` ``[B, N]`` marks real tokens."""
    dream = config["model_type"] == "Dream"
    heads = config["num_attention_heads" if dream else "n_heads"]
    kv_heads = config["num_key_value_heads" if dream else "n_kv_heads"]
    names = (
        ("model.layers.{}.self_attn.{}_proj", "model.layers.{}.mlp.{}_proj", "model.layers.{}.{}_layernorm")
        if dream
        else ("model.transformer.blocks.{}.{}",) * 3
    )
    q, k, v, o = "qkvo" if dream else ("q_proj", "k_proj", "v_proj", "attn_out")
    gate, up, down = ("gate", "up", "down") if dream else ("ff_proj", "up_proj", "ff_out")
    norms = ("input", "post_attention") if dream else ("attn_norm", "ff_norm")
    outer = ("model.embed_tokens", "model.norm", "lm_head")
    embed, final, head = outer if dream else [f"model.transformer.{n}" for n in ("wte", "ln_f", "ff_out")]

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[name + ".weight"], weights.get(name + ".bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        y = x.float()  # as in both authors' code
        return (
            weights[name + ".weight"]
            * (y * (y.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).rsqrt()).double()
        )

    x = weights[embed + ".weight"][tokens]
    dh = x.shape[-1] // heads
    angle = torch.arange(tokens.shape[1])[:, None] * (1 / config["rope_theta"] ** (torch.arange(0, dh, 2) / dh))
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex128)

    def rotated(y: Tensor) -> Tensor:
        turned = torch.complex(*y.chunk(2, -1)) * turn
        return torch.cat([turned.real, turned.imag], -1)

    for i in range(config["num_hidden_layers" if dream else "n_layers"]):
        y = norm(names[2].format(i, norms[0]), x)
        split = {p: linear(names[0].format(i, p), y).unflatten(-1, (-1, dh)).transpose(1, 2) for p in (q, k, v)}
        keys, values = (split[p].repeat_interleave(heads // kv_heads, 1) for p in (k, v))
        scores = rotated(split[q]) @ rotated(keys).transpose(-1, -2) / math.sqrt(dh)
        if keep is not None:
            scores = scores.masked_fill(~keep[:, None, None, :], -math.inf)
        x = x + linear(names[0].format(i, o), (scores.softmax(-1) @ values).transpose(1, 2).flatten(2))
        y = norm(names[2].format(i, norms[1]), x)
        x = x + linear(
            names[1].format(i, down), F.silu(linear(names[1].format(i, gate), y)) * linear(names[1].format(i, up), y)
        )
    return linear(head, norm(final, x))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_the_loaded_model_is_the_plain_formula(family: str, padded: bool, tmp_path: Path):
    """Attention both ways, with and without padding; GQA; biases for Dream."""
    write(family, tmp_path / "model", initializer_range=0.1)  # 0.2 would blow up the rounding of float32 norms
    weights = {name: w.double() for name, w in load_file(tmp_path / "model" / "model.safetensors").items()}
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    model = load(str(tmp_path / "model"), dtype="float64").model
    tokens, keep = ids(), None
    if padded:
        keep = torch.arange(tokens.shape[1]) >= torch.tensor([[5], [0]])
    with torch.no_grad():
        logits = model(tokens, attention_mask=keep, use_cache=False).logits
        model.set_attn_implementation("eager")
        eager = model(tokens, attention_mask=keep, use_cache=False).logits
    expected = plain(weights, config, tokens, keep)
    real = keep if padded else torch.ones_like(tokens, dtype=torch.bool)
    assert model.config.is_causal is False and expected.std() > 0.1
    assert (logits - expected)[real].abs().max() < 1e-6
    assert (eager - expected)[real].abs().max() < 1e-5  # its softmax is in float32
    assert ("self_attn.q_proj.bias" in " ".join(weights)) == (family == "dream")


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_every_position_sees_the_last_token(family: str):
    model, tokens = masked_lm.tiny(family), ids(1)
    other = tokens.clone()
    other[0, -1] = 3 + (tokens[0, -1] - 2) % 40
    with torch.no_grad():
        changed = (model(tokens).logits - model(other).logits).abs().amax(-1)[0]
        hidden = model.model.embed_tokens(tokens), model.model.embed_tokens(other)
        turn = model.model.rotary_emb(hidden[0], position_ids=torch.arange(tokens.shape[1])[None])
        one, two = (model.model.layers[0](h, position_embeddings=turn) for h in hidden)
    assert changed.min() > 1e-4
    assert (one - two).abs().amax(-1).min() > 1e-6, "a layer called on its own looked one way"


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_what_callers_ask_of_the_configuration(family: str, tmp_path: Path):
    write(family, tmp_path / "model", eos_token_id=7, pad_token_id=7)
    model = load(str(tmp_path / "model")).model
    assert type(model).__name__ == {"llada": "LlamaForCausalLM", "dream": "Qwen2ForCausalLM"}[family]
    assert (model.config.is_causal, model.config.mask_token_id, model.config.diffusion) == (False, 49, family)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (7, 7)
    assert model.config.max_position_embeddings == 512
    assert not model.training


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_folder_gives_the_same_logits_bit_for_bit(family: str, tmp_path: Path):
    model = write(family, tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(load(str(tmp_path / "model")).model(ids()).logits, model(ids()).logits)


def test_a_tied_head_is_read_and_written(tmp_path: Path):
    model = write("llada", tmp_path / "model", tie_word_embeddings=True)
    loaded = load(str(tmp_path / "model")).model
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.equal(loaded(ids()).logits, model(ids()).logits)


def test_a_model_can_be_saved_to_where_it_came_from(folder: Path):
    """Weights that stayed in the file would be gone when it is overwritten."""
    model = load(str(folder)).model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    llada_format.save_llada(model, folder)
    after = load(str(folder)).model.state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())


def test_shards_are_read_one_by_one(tmp_path: Path):
    model = write("llada", tmp_path / "model", shard="40KB")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 2
    with torch.no_grad():
        assert torch.equal(load(str(tmp_path / "model")).model(ids()).logits, model(ids()).logits)
    llada_format.save_llada(model, tmp_path / "model")  # in one file, to the same folder
    with torch.no_grad():
        assert torch.equal(load(str(tmp_path / "model")).model(ids()).logits, model(ids()).logits)
    assert [file.name for file in (tmp_path / "model").glob("*.safetensors*")] == ["model.safetensors"]


def test_half_precision_keeps_angles_in_float32(folder: Path):
    """At position 4001 an angle of the fastest pair that went through bfloat16 would be off by up to 8 radians."""
    model = load(str(folder), dtype="bfloat16").model
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    cos, sin = model.model.rotary_emb(torch.zeros(1, dtype=torch.bfloat16), position_ids=torch.tensor([[4001]]))
    theta, dh = model.config.rope_parameters["rope_theta"], model.config.head_dim
    angle = 4001 / theta ** (torch.arange(0, dh, 2, dtype=torch.float64) / dh)
    assert (cos[0, 0, : dh // 2] - angle.cos()).abs().max() < 2**-8
    assert (sin[0, 0, : dh // 2] - angle.sin()).abs().max() < 2**-8


def test_rotating_in_bfloat16_costs_less_than_bfloat16_itself(folder: Path):
    """LLaDA rotates queries and keys in float32, transformers in the dtype of the weights."""
    exact, half = (load(str(folder), dtype=dtype).model for dtype in ("float32", "bfloat16"))
    exact.load_state_dict({name: weight.float() for name, weight in half.state_dict().items()})
    turn = exact.model.rotary_emb.forward
    tokens = ids(4, 400)
    with torch.no_grad():
        truth, stock = exact(tokens).logits, half(tokens).logits.float()
        exact.model.rotary_emb.forward = lambda x, position_ids: tuple(
            part.bfloat16().float() for part in turn(x, position_ids)
        )
        rounded = exact(tokens).logits
    assert 0 < (rounded - truth).pow(2).mean() < 0.25 * (stock - truth).pow(2).mean()


@pytest.mark.parametrize(
    ("config", "millions", "count"), [(LLADA_8B, 8015.6, 32 * 9 + 3), (DREAM_7B, 7615.6, 28 * 12 + 3)], ids=["8B", "7B"]
)
def test_the_real_sizes_build_and_all_their_names_map(config: dict, millions: float, count: int):
    model, names = masked_lm.from_config(config), llada_format.checkpoint_names(config)
    weights = dict(model.named_parameters())
    assert all(weight.device.type == "meta" for weight in weights.values())
    assert sum(weight.numel() for weight in weights.values()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert len(names) == count and set(names.values()) == set(weights)
    assert set(names) == set(official(config))


@pytest.mark.parametrize(("config", "family"), [(LLADA_8B, "llada"), (DREAM_7B, "dream")], ids=["8B", "7B"])
def test_a_description_needs_the_configuration_only(config: dict, family: str):
    lines = dict(masked_lm.describe(config))
    heads = {"llada": "LlamaForCausalLM", "dream": "Qwen2ForCausalLM"}[family]
    assert lines["family"] == f"{family}, as {heads} with attention both ways"
    assert lines["weights"].endswith({"llada": "14.93 GiB in bfloat16", "dream": "14.19 GiB in bfloat16"}[family])
    with pytest.raises(UnsupportedModelError, match="'llama' is no masked diffusion model"):
        masked_lm.describe(causal_lm.tiny().config)


def test_lengths_that_the_model_has_no_positions_for():
    model = masked_lm.tiny()
    masked_lm.check_length(model, 500, 12)
    with pytest.raises(ValueError, match="500 prompt and 13 response tokens need 513 positions, but the model has 512"):
        masked_lm.check_length(model, 500, 13)
    with pytest.raises(ValueError, match="the prompt is empty"):
        masked_lm.check_length(model, 0, 8)


@pytest.mark.parametrize(("named", "tokens"), [(None, ()), (2, (2,)), ([2, 7], (2, 7))])
def test_end_tokens_are_none_one_or_several(named: object, tokens: tuple[int, ...]):
    assert masked_lm.end_tokens(masked_lm.tiny(eos_token_id=named).config) == tokens


def official(config: dict) -> list[str]:
    """Weights as the authors' code names them."""
    if config["model_type"] == "llada":
        block = ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out", "attn_norm", "ff_norm"]
        inner = [f"model.transformer.blocks.{i}.{part}.weight" for i in range(32) for part in block]
        return [*inner, *(f"model.transformer.{part}.weight" for part in ("wte", "ln_f", "ff_out"))]
    block = [f"self_attn.{p}_proj.{kind}" for p in "qkv" for kind in ("weight", "bias")] + ["self_attn.o_proj.weight"]
    block += [f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    block += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    inner = [f"model.layers.{i}.{part}" for i in range(28) for part in block]
    return [*inner, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


def test_written_configurations_say_what_was_read():
    model = masked_lm.from_config({**LLADA_8B, "n_layers": 1, "d_model": 64, "n_heads": 4, "n_kv_heads": None})
    assert model.config.num_key_value_heads == 4
    assert (
        masked_lm.from_config(
            {**LLADA_8B, "n_kv_heads": None, "multi_query_attention": True}
        ).config.num_key_value_heads
        == 1
    )


@pytest.mark.parametrize(
    "fields",
    [{"layer_norm_type": "default"}, {"include_qkv_bias": True}, {"alibi": True}, {"rope_scaling": {"factor": 2}}],
)
def test_another_llada_is_refused(folder: Path, fields: dict):
    edit(folder, **fields)
    with pytest.raises(UnsupportedModelError, match=next(iter(fields))):
        load(str(folder))


def test_a_dream_with_windows_is_refused(tmp_path: Path):
    write("dream", tmp_path / "model")
    edit(tmp_path / "model", use_sliding_window=True)
    with pytest.raises(UnsupportedModelError, match="use_sliding_window"):
        load(str(tmp_path / "model"))


def test_a_size_that_is_not_told_is_named(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    del config["n_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadFileError, match="lacks 'n_layers'"):
        load(str(folder))


@pytest.mark.parametrize("damage", ["missing", "left over", "shape", "cut", "gone"])
def test_damaged_weights_are_one_sentence(folder: Path, damage: str):
    file = folder / "model.safetensors"
    weights, name = load_file(file), "model.transformer.blocks.1.ff_out.weight"
    says = name
    if damage == "missing":
        save_file({n: w for n, w in weights.items() if n != name}, file)
    elif damage == "left over":
        says = "model.transformer.blocks.4.ff_out.weight"
        save_file({**weights, says: weights[name].clone()}, file)
    elif damage == "shape":
        save_file({**weights, name: weights[name][:, 1:].contiguous()}, file)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
        says = "damaged"
    else:
        file.unlink()
        says = "lacks model.safetensors"
    with pytest.raises(BadFileError, match=says) as caught:
        load(str(folder))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["missing shard", "corrupt shard", "no map", "map outside"])
def test_damaged_shards_are_one_sentence(tmp_path: Path, damage: str):
    folder = tmp_path / "model"
    write("llada", folder, shard="40KB")
    shard, index = sorted(folder.glob("model-*.safetensors"))[1], folder / "model.safetensors.index.json"
    says = shard.name
    if damage == "missing shard":
        shard.unlink()
    elif damage == "corrupt shard":
        shard.write_bytes(b"\xff" * 200)
        says = "damaged"
    elif damage == "no map":
        index.write_text("[]")
        says = "lists no files"
    else:
        listed = json.loads(index.read_text())["weight_map"]
        index.write_text(json.dumps({"weight_map": {name: f"../{file}" for name, file in listed.items()}}))
        says = "lists no files"
    with pytest.raises(BadFileError, match=says) as caught:
        load(str(folder))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_pickles_are_never_opened(folder: Path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(BadFileError, match=r"lacks model\.safetensors"):
        load(str(folder))


def test_only_a_llada_is_written_as_one(tmp_path: Path):
    for model in (masked_lm.tiny("dream"), causal_lm.tiny()):
        with pytest.raises(UnsupportedModelError, match="is no LLaDA"):
            llada_format.save_llada(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def words() -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"<unk>": 0, "few": 3, "steps": 4}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def test_a_llada_tokenizer_loads_without_the_code_of_its_folder(folder: Path):
    ran = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
    words().save(str(folder / "tokenizer.json"))  # type: ignore[attr-defined]
    own = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "evil.Mine"]}, "mask_token": "<m>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**own, "chat_template": "{{ messages[0].content }}!"}))
    edit(folder, auto_map={"AutoModelForCausalLM": "evil.Mine"})
    tokenizer = load(str(folder)).processor
    assert tokenizer("few steps").input_ids == [3, 4] and tokenizer.mask_token == "<m>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"
    assert not ran.exists()


def test_a_dream_tokenizer_comes_from_vocabulary_and_merges(tmp_path: Path):
    folder = tmp_path / "model"
    write("dream", folder)
    vocabulary = {"f": 0, "e": 1, "w": 2, "fe": 3, "few": 4, "<|endoftext|>": 5}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nf e\nfe w\n")
    added = {"6": {"content": "<|mask|>", "special": True}, "5": {"content": "<|endoftext|>", "special": True}}
    own = {"tokenizer_class": "DreamTokenizer", "auto_map": {"AutoTokenizer": ["t.DreamTokenizer", None]}}
    config = {**own, "added_tokens_decoder": added, "mask_token": "<|mask|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load(str(folder)).processor
    assert tokenizer("few<|mask|>").input_ids == [4, 6] and tokenizer.mask_token_id == 6


def test_a_folder_without_a_tokenizer_loads_too(folder: Path):
    assert load(str(folder)).processor is None


def test_a_killed_save_is_no_model(folder: Path):
    """The configuration comes last."""
    shutil.copytree(folder, folder.parent / "part", ignore=shutil.ignore_patterns("config.json"))
    with pytest.raises(BadFileError, match="is not a model folder"):
        load(str(folder.parent / "part"))


def edit(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
