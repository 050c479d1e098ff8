"""The command line on a small folder in LLaDA's format, as a user calls it."""

import json

import pytest
from fewstep import load, plugins
from fewstep.families import causal_lm, masked_lm
from fewstep.families.llada_format import save_llada
from fewstep.testing.cli import run_command_line
from fewstep_focus_dllm import DecodingOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny LLaDA with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(3, 49)} | {"<pad>": 0, "<s>": 1, "</s>": 2, "<mask>": 49}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", mask_token="<mask>"
    )
    where = tmp_path_factory.mktemp("model") / "tiny-llada"
    save_llada(masked_lm.tiny(), where, tokenizer)
    return where


def fewstep(*words, cwd, code=0):
    done = run_command_line(words, cwd)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_run_prints_the_answer_and_what_it_cost(folder, tmp_path):
    (tmp_path / "book.txt").write_text("w5 w6 w7 " * 20)
    done = fewstep(
        *("run", "focus-dllm", "--model", folder, "--prompt-file", "book.txt", "--prompt", "w8", "--threads", "1"),
        *("--gen-length", "16", "--block-length", "8", "--prompt-block", "8", "--keep-floor", "0"),
        *("--output", "a.json"),
        cwd=tmp_path,
    )
    assert "prompt tokens: 61" in done.stdout and "full passes: 2" in done.stdout
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved["method"] == "focus-dllm" and saved["fields"]["prompt_block"] == 8
    assert saved["answer"].replace(" ", "") in done.stdout.replace(" ", "")


def test_bench_writes_rows_of_latency(folder, tmp_path):
    fewstep(
        *("bench", "focus-dllm", "--model", folder, "--task", "latency", "--length", "64", "--gen-length", "16"),
        *("--block-length", "8", "--repeats", "1", "--threads", "1", "--vs", "fast-dllm", "--results", "out"),
        cwd=tmp_path,
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "latency.jsonl").read_text().splitlines()]
    metrics = {(row["method"], row["metric"]) for row in rows}
    assert {("focus-dllm", "generate_speedup"), ("focus-dllm", "cached_step_vs_fast_dllm_speedup")} <= metrics


def test_fit_saves_a_method_that_run_takes(folder, tmp_path):
    done = fewstep(
        *("fit", "focus-dllm", "--model", folder, "--out", "fitted", "--length", "32", "--prompts", "2"),
        *("--gen-length", "8", "--block-length", "8", "--sinks", "4", "--threads", "1"),
        cwd=tmp_path,
    )
    assert "last_dense" in done.stdout and len((tmp_path / "fitted" / "probe.jsonl").read_text().splitlines()) == 1 + 2
    fewstep(
        *("run", "focus-dllm", "--model", folder, "--prompt", "w3 w4", "--method-from", "fitted", "--threads", "1"),
        *("--gen-length", "8", "--block-length", "8"),
        cwd=tmp_path,
    )


def test_show_tells_of_a_real_configuration(tmp_path):
    config = {
        "model_type": "Dream", "architectures": ["DreamModel"], "vocab_size": 152064, "hidden_size": 3584,
        "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False,
        "mask_token_id": 151666, "pad_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    shown = fewstep("show", "focus-dllm", "--model", ".", cwd=tmp_path).stdout
    assert "7.62 G parameters in 339 tensors" in shown and "0 to 6; the others are sparse" in shown
    assert "1.76 GiB" in shown and "more than the model's positions" not in shown


METHODS = ["vanilla", "fast-dllm", "fast-dllm-published", "sparse-dllm", "focus-dllm"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("more", [(), ("--no-stop-at-eos",)], ids=["stops", "goes on"])
def test_what_follows_the_end_token_is_not_printed(folder, tmp_path, name, more):
    """Sampling with a bias mixes end tokens with others."""
    sampled = {"gen_length": 16, "block_length": 16, "temperature": 1.0, "eos_bias": 3.0, "seed": 1}
    loaded = load(folder)
    ids = loaded.processor("w3 <mask> w4", return_tensors="pt").input_ids
    with plugins.methods()[name].load()().apply(loaded.model):
        output = loaded.model.generate(ids, decoding=DecodingOptions(**sampled, stop_at_eos=False))
    everything, end = output.response[0].tolist(), loaded.model.config.eos_token_id
    wanted = everything[: everything.index(end)]
    assert any(token != end for token in everything[len(wanted) :])
    flags = [word for field, value in sampled.items() for word in (f"--{field.replace('_', '-')}", str(value))]
    done = fewstep(
        *("run", name, "--model", folder, "--prompt", "w3 <mask> w4", "--threads", "1", "--output", "a.json"),
        *flags,
        *more,
        cwd=tmp_path,
    )
    saved, answer = json.loads((tmp_path / "a.json").read_text()), loaded.processor.decode(wanted)
    assert saved["answer"] == answer and done.stdout.startswith(f"{answer}\n")
    assert saved["response tokens"] == (16 if more else len(wanted) + 1)


@pytest.mark.parametrize("name", METHODS)
def test_guidance_is_a_flag_of_every_decoder(folder, tmp_path, name):
    words = ("run", name, "--model", folder, "--prompt", "w3 w4 w5", "--threads", "1", "--gen-length", "8")
    options = ("--block-length", "4", "--no-stop-at-eos", "--output", "a.json")
    passes = []
    for scale in ("0", "2"):
        fewstep(*words, *options, "--cfg-scale", scale, cwd=tmp_path)
        passes.append(json.loads((tmp_path / "a.json").read_text())["full passes"])
    assert passes[1] == 2 * passes[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prompt", "w3", "--cfg-scale", "-1"), "cfg_scale must be 0 or more"),
        (("--prompt", "w3", "--gen-length", "0"), "gen_length must be at least 1"),
        (("--prompt", "w3", "--keep", "2"), "(0, 1]"),
        (("--prompt", " "), "the prompt is empty"),
        (("--prompt", "w3", "--prompt-file", "none.txt"), "none.txt"),
        (("--prompt", "w3 " * 500), "positions"),
    ],
)
def test_wrong_input_ends_with_one_line(folder, tmp_path, words, said):
    done = fewstep("run", "focus-dllm", "--model", folder, "--threads", "1", *words, cwd=tmp_path, code=2)
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_checkpoint_with_a_missing_shard_is_refused(folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (broken / file.name).write_bytes(file.read_bytes())
    index = {"metadata": {}, "weight_map": {"model.transformer.wte.weight": "model-00001-of-00002.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    done = fewstep("run", "focus-dllm", "--model", broken, "--prompt", "w3", cwd=tmp_path, code=2)
    assert "model-00001-of-00002.safetensors" in done.stderr


def test_an_autoregressive_model_is_refused(tmp_path):
    causal_lm.tiny().save_pretrained(tmp_path / "llm")
    done = fewstep("run", "focus-dllm", "--model", "llm", "--prompt", "w3", cwd=tmp_path, code=2)
    assert "tokenizer" in done.stderr or "mask token" in done.stderr
