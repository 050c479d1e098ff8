"""The commands on a tiny model in a folder: fit, bench, run, show, and what they say when something is wrong."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from fewstep import BadFileError, FewstepError, load
from fewstep.families import tiny_moe
from fewstep.testing.cli import run_command_line
from fewstep_modes.fit import FitMoDES
from fewstep_modes.method import describe
from transformers import Qwen3VLMoeConfig


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A tiny Qwen3-MoE with a tokenizer of a few words, and questions to calibrate with."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-moe"
    tiny_moe.tiny("qwen3_moe").save_pretrained(folder)
    words = Tokenizer(
        models.WordLevel({"<unk>": 3, "</s>": 2, "what": 10, "is": 11, "this": 12, "a": 13, "dog": 14}, "<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    asked = [{"prompt": "what is this", "answer": "a dog"}, {"prompt": "is this a dog", "answer": "this is"}]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, asked)))
    return folder


def fewstep(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    return run_command_line(words, cwd, env={"HF_HUB_OFFLINE": "1", "COLUMNS": "200"})


def test_fit_then_run_and_bench(folder, tmp_path):
    fit = ("fit", "modes", "--model", folder, "--data", folder / "questions.jsonl", "--targets", "0.3", "0.6")
    made = fewstep(*fit, "--size", "6", "--out", "fitted", "--threads", "1", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    log = (tmp_path / "fitted/fit.jsonl").read_text()
    again = fewstep(*fit, "--size", "6", "--out", "fitted", "--threads", "1", cwd=tmp_path)
    assert again.returncode == 0 and (tmp_path / "fitted/fit.jsonl").read_text() == log, "nothing is measured twice"
    asked = ("run", "modes", "--model", folder, "--method-from", "fitted", "--max-new-tokens", "3")
    said = fewstep(*asked, "--prompt", "what is this", "--compare", "--output", "said.json", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "pairs skipped: 0." in said.stdout and "layer 2: text" in said.stdout
    assert json.loads((tmp_path / "said.json").read_text())["method"] == "modes"
    bench = ("bench", "modes", "--model", folder, "--method-from", "fitted", "--task", "moe-latency", "--length", "32")
    measured = fewstep(*bench, "--target", "0.3,0.6", "--repeats", "1", "--new-tokens", "2", cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    rows = [json.loads(line) for line in (tmp_path / "results/moe-latency.jsonl").read_text().splitlines()]
    assert {row["config"].get("target") for row in rows if row["method"] == "modes"} == {0.3, 0.6}
    (run,) = [json.loads(line) for line in (tmp_path / "results/runs.jsonl").read_text().splitlines()]
    assert "points" not in rows[-1]["config"] and "2 samples" not in run["command"]


def test_wrong_words_are_one_sentence(folder, tmp_path):
    bare = fewstep("bench", "modes", "--model", folder, "--task", "moe-latency", "--length", "8", cwd=tmp_path)
    assert bare.returncode == 2 and "it is not fitted" in bare.stderr and bare.stderr.count("\n") == 1, bare.stderr
    loaded = load(str(folder))
    with pytest.raises(FewstepError, match="moe-latency|offers no calibration data"):
        FitMoDES(task="needle")(loaded, tmp_path)
    with pytest.raises(ValueError, match="samples and batch must be at least 1"):
        FitMoDES(samples=0)(loaded, tmp_path)
    with pytest.raises(BadFileError, match="none.jsonl cannot be read"):
        FitMoDES(data=tmp_path / "none.jsonl")(loaded, tmp_path)


QWEN3_VL_30B = {
    "text_config": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "max_position_embeddings": 262144,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    },
    "vision_config": {"out_hidden_size": 2048},
}
"""The published configuration of Qwen3-VL-30B-A3B-Instruct."""


def test_the_real_configuration_is_recognised_without_weights(tmp_path):
    config = Qwen3VLMoeConfig(**QWEN3_VL_30B)
    config.architectures = ["Qwen3VLMoeForConditionalGeneration"]
    lines = dict(describe(config, Path()))
    assert lines["layers with experts"] == "48 of 48 (0 to 47)"
    assert lines["routed experts"] == "128 in each, 8 for each token" and lines["shared experts"] == "none"
    share = float(lines["routed share of a 2048-token prompt's operations"].rstrip("%")) / 100
    routed, attention = 8 * 3 * 2048 * 768, 2 * 2048 * 4096 + 2 * 2048 * 512
    assert share == pytest.approx(routed / (routed + attention + 2048 * 128 + 32 * 128 * 2048), abs=0.002)
    assert f"{1 / (1 - 0.88 * share):.2f}x at 88%" in lines["prefill gain that this allows"]
    assert 29 < float(lines["parameters"].split()[0]) < 32
    assert lines["weights in bfloat16"].startswith("62.") and "a new token reads 5." in lines["weights in bfloat16"]
    config.save_pretrained(tmp_path / "model")
    shown = fewstep("show", "modes", "--model", "model", cwd=tmp_path)
    assert shown.returncode == 0 and "128 in each, 8 for each token" in shown.stdout, shown.stderr
    (tmp_path / "model/config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    refused = fewstep("show", "modes", "--model", "model", cwd=tmp_path)
    assert refused.returncode == 2 and "no layer with routed experts" in refused.stderr
