"""Loading a model folder by path, and what a folder that is damaged or no model says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fewstep import BadFileError, UnknownNameError, load
from fewstep.families import causal_lm, tiny_moe, wan
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer of three words, saved as transformers saves any model."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    causal_lm.tiny().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "few": 3, "steps": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved` to damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_a_folder_gives_the_saved_model_and_its_tokenizer(saved: Path):
    loaded = load(str(saved))
    ids = causal_lm.tiny_prompt(7)
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, causal_lm.tiny()(ids).logits)
    assert loaded.processor("few steps").input_ids == [3, 4]
    assert loaded.name == str(saved) and loaded.weights == "pretrained"
    assert not loaded.model.training and loaded.model.dtype == torch.float32


def test_a_path_is_as_good_as_its_text(saved: Path):
    assert load(saved).name == str(saved) == load(str(saved)).name


def test_a_model_with_pictures_brings_its_processor_without_torchvision(tmp_path: Path):
    from fewstep.loaders import without_video
    from PIL import Image
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    special = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    ids = {
        "<unk>": 0,
        "<pad>": 1,
        special[0]: tiny_moe.IMAGE,
        special[2]: tiny_moe.START,
        special[3]: tiny_moe.END,
        special[1]: 93,
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(ids, unk_token="<unk>")),
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=special,
    )
    size = {"shortest_edge": tiny_moe.SIDE**2, "longest_edge": tiny_moe.SIDE**2}
    pictures = Qwen2VLImageProcessorPil(patch_size=tiny_moe.PATCH, temporal_patch_size=1, merge_size=2, size=size)
    without_video(Qwen3VLProcessor)(image_processor=pictures, tokenizer=tokenizer).save_pretrained(tmp_path)
    tiny_moe.tiny().save_pretrained(tmp_path)

    loaded = load(str(tmp_path))
    assert isinstance(loaded.processor, Qwen3VLProcessor)
    asked = "".join([special[2], special[0], special[3]])
    found = loaded.processor(images=[Image.new("L", (48, 48))], text=[asked], return_tensors="pt")
    assert found["mm_token_type_ids"].sum() == (found["input_ids"] == tiny_moe.IMAGE).sum() == 16
    with torch.no_grad():
        assert loaded.model(**found).logits.isfinite().all()


def test_dtype_is_chosen_by_name(saved: Path):
    assert load(str(saved), dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="'float33' is not a torch dtype; use float32"):
        load(str(saved), dtype="float33")
    with pytest.raises(ValueError, match="'nn' is not a torch dtype"):
        load(str(saved), dtype="nn")


def test_a_pipeline_that_was_saved_without_a_vae_loads_without_one(tmp_path: Path):
    pipe = wan.tiny_pipeline()
    pipe.vae = None
    pipe.save_pretrained(tmp_path)
    loaded = load(str(tmp_path)).model
    assert loaded.vae is None and type(loaded) is type(pipe)
    saved, expected = loaded.transformer.state_dict(), pipe.transformer.state_dict()
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


def test_a_folder_without_a_tokenizer_loads_too(folder: Path):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert load(str(folder)).processor is None


@pytest.mark.parametrize("kept", [0, 4, 500, 0.5, 0.999])
def test_truncated_weights_are_told_with_the_folder(folder: Path, kept: float):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(BadFileError) as error:
        load(str(folder))
    assert str(folder) in str(error.value)


def test_missing_weights_are_counted_and_one_is_named(folder: Path):
    weights = load_file(folder / WEIGHTS)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(BadFileError, match=r"lacks 1 weights of LlamaForCausalLM.*layers\.1\.mlp\.up_proj"):
        load(str(folder))


def test_weights_of_another_shape_are_refused(folder: Path):
    edit(folder, intermediate_size=48)
    with pytest.raises(BadFileError, match="cannot be loaded as a model"):
        load(str(folder))


def test_no_weights_at_all_are_refused(folder: Path):
    (folder / WEIGHTS).unlink()
    with pytest.raises(BadFileError, match="cannot be loaded as a model"):
        load(str(folder))


def test_pickles_are_never_opened(folder: Path):
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(BadFileError):
        load(str(folder))


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(BadFileError, match=r"has neither config\.json nor model_index\.json"):
        load(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_a_damaged_configuration_is_told_with_the_folder(folder: Path, text: str):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadFileError) as error:
        load(str(folder))
    assert str(folder) in str(error.value)


def test_an_architecture_that_transformers_does_not_have_is_named(folder: Path):
    edit(folder, architectures=["TeapotForCausalLM"])
    with pytest.raises(BadFileError, match="TeapotForCausalLM, which transformers does not have"):
        load(str(folder))


def test_an_unknown_name_lists_the_models_that_load_by_name():
    with pytest.raises(UnknownNameError, match="no model, folder or hub id is called 'smolm2'"):
        load("smolm2")


@pytest.mark.parametrize("name", ["./not/here", "/not/here", "~/nothere"])
def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(name: str):
    with pytest.raises(UnknownNameError, match="is called"):
        load(name)


def test_a_hub_id_offline_is_one_sentence():
    code = "import fewstep; fewstep.load('nobody/nothing')"
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    message = run.stderr.strip().splitlines()[-1]
    assert message.startswith("fewstep.errors.UnknownNameError: no model 'nobody/nothing' on this machine")
    assert "HF_HUB_OFFLINE" in message


def edit(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def test_a_single_network_of_diffusers_loads_from_its_folder(tmp_path):
    vae = wan.tiny_pipeline().vae
    vae.save_pretrained(tmp_path / "vae")
    loaded = load(str(tmp_path / "vae"))
    assert type(loaded.model) is type(vae) and not loaded.model.training and loaded.processor is None
    state = vae.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.model.state_dict().items())
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    with pytest.raises(BadFileError, match="damaged|cannot be loaded"):
        load(str(tmp_path / "vae"))
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "NoSuchVAE"}')
    with pytest.raises(BadFileError, match="NoSuchVAE"):
        load(str(tmp_path / "vae"))


HOSTILE = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("model_type", ["llama", "unheard_of"])
def test_code_that_comes_with_a_checkpoint_is_never_run(folder: Path, file: str, model_type: str, monkeypatch):
    """Not even when standard input says yes: the first line of a piped prompt would."""
    import io

    for name in ("modeling_x", "configuration_x", "tokenization_x"):
        (folder / f"{name}.py").write_text(HOSTILE)
    config = json.loads((folder / file).read_text())
    if file == "config.json":
        config |= {"auto_map": {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}}
        config |= {"model_type": model_type}
    else:
        config |= {"auto_map": {"AutoTokenizer": ["tokenization_x.X", "tokenization_x.X"]}, "tokenizer_class": "X"}
    (folder / file).write_text(json.dumps(config))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\ny\n"))
    try:
        load(str(folder))
    except BadFileError as error:
        assert "\n" not in str(error)
    else:
        assert (file, model_type) != ("config.json", "unheard_of")
    assert not (folder / "ran").exists()
