"""The plan of SlimInfer against what the method does, and on a real configuration."""

from __future__ import annotations

import json

import pytest
from fewstep.bench.provenance import Provenance
from fewstep.bench.rows import Row, append, read
from fewstep.errors import UnsupportedModelError
from fewstep.families import causal_lm
from fewstep.plan import check, record
from fewstep.plan.machines import machine, machine_of_rows
from fewstep.plan.models import parts_of
from fewstep.roofline import Workload, time, total
from fewstep.testing.cli import run_command_line
from fewstep_slim_infer import SlimInfer
from fewstep_slim_infer.plan import plan, tokens_by_layer

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.mark.parametrize("keep", [0.5, (64, 48), 1.0])
def test_layers_see_as_many_tokens_as_the_method_leaves(keep):
    model, prompt = causal_lm.tiny(), 150
    method = SlimInfer(entry=(2, 4), keep=keep, block=16, score="dot", window=4, carry=0)
    with method.apply(model) as slim:
        model(causal_lm.tiny_prompt(prompt), use_cache=True)
        segments = [rows[0] for rows in slim.report.tokens]
    settled = method.resolve(model.config)
    tokens = tokens_by_layer(settled, settled.keep, 6, prompt)
    assert [tokens[0], tokens[2], tokens[4]] == pytest.approx(segments, abs=10)  # the last block is ragged


def test_the_paper_s_setting_on_its_model():
    card = machine("a100", "bfloat16", 1)
    gains = []
    for length in (8192, 32768, 65536):
        made = plan(SlimInfer(), parts_of(LLAMA), Workload(length=length))
        before, after = (time(cost.phases[0], card).seconds for cost in (made.before, made.after))
        assert made.after.memory["KV cache"] <= made.before.memory["KV cache"]
        gains.append(before / after)
    assert 1.1 < gains[0] < gains[1] < gains[2]  # of operations 1.3x at 8K and 2.6x at 32K
    kept = plan(SlimInfer(keep=1.0), parts_of(LLAMA), Workload())
    assert total(kept.after.phases, card) == pytest.approx(total(kept.before.phases, card), rel=1e-2)


def test_fewer_tokens_while_decoding_read_less():
    def decoding(method):
        return time(
            plan(method, parts_of(LLAMA), Workload(length=65536)).after.phases[1], machine("h100", "bfloat16", 1)
        )

    assert decoding(SlimInfer(decode_keep=1024)).bandwidth < decoding(SlimInfer()).bandwidth


def test_what_is_not_predicted_is_refused():
    with pytest.raises(UnsupportedModelError, match="no recomputed blocks"):
        plan(SlimInfer(offload=True), parts_of(LLAMA), Workload())
    with pytest.raises(UnsupportedModelError, match="this is none"):
        plan(SlimInfer(), parts_of("GSAI-ML/LLaDA-8B-Instruct"), Workload())
    with pytest.raises(UnsupportedModelError, match="this is none"):
        plan(SlimInfer(), {"transformer": {}}, Workload())


def measured(folder, metric="ttft_speedup", value=1.9, **changed):
    """A results folder with one speed-up and the time of the unchanged model."""
    run = Provenance(
        id="r1", weights="pretrained", device="a CPU", hardware="cpu", dtype="float32", threads=2, versions={},
        commit="", date="2026-01-01T00:00:00+00:00", command="fewstep bench",
    )  # fmt: skip
    own = {"task": "continuation", "model": "HuggingFaceTB/SmolLM2-135M-Instruct", "run": run}
    own["params"] = {"length": 4096, "new_tokens": 64, "text": "moby-dick", "seed": 0}
    rows = [
        Row(**own, method="dense", metric="ttft", value=9.0, unit="s"),
        Row(
            **{**own, "method": "slim-infer", "baseline": "dense-float32", **changed},
            metric=metric,
            value=value,
            unit="x",
        ),
    ]
    append(rows, folder / "continuation.jsonl")
    return rows


def test_predictions_stand_beside_measured_rows(tmp_path):
    measured(tmp_path)
    (pair,), refused = check.pairs(read(tmp_path))
    cpu = machine_of_rows("cpu")
    assert not refused and pair.dense.value == 9.0 and [phase.name for phase in pair.before] == ["prefill"]
    assert abs(pair.error(cpu)) < 0.2 and pair.predicted(cpu) / 1.9 - 1 == pytest.approx(pair.error(cpu))
    measured(tmp_path, config={"revive": "recompute"})
    measured(tmp_path, method="lazy-llm")
    measured(tmp_path, metric="walk_speedup")
    found, refused = check.pairs(read(tmp_path))
    assert len(found) == 1 and list(refused) == ["slim-infer in continuation on HuggingFaceTB/SmolLM2-135M-Instruct"]
    shown = run_command_line(["plan", "--check", tmp_path], tmp_path)
    assert shown.returncode == 0 and "median error" in shown.stdout and "1.90x" in shown.stdout, shown.stderr
    empty = run_command_line(["plan", "--check", tmp_path / "nowhere"], tmp_path)
    assert empty.returncode == 2 and "no rows" in empty.stderr


def test_predictions_are_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # outside any checkout, which might be dirty
    measured(tmp_path)
    found, _ = check.pairs(read(tmp_path))
    count = record.write(found, machine_of_rows("cpu"), tmp_path, "fewstep plan", ["Qwen/Qwen2.5-7B-Instruct"])
    rows = read(tmp_path / record.FILE)
    assert len(rows) == count and {row.task for row in rows} == {"plan"}
    beside = {row.metric: row.value for row in rows if row.model.startswith("Hugging")}
    assert beside["ttft_measured"] == 1.9 and beside["ttft_predicted"] == pytest.approx(1.9, rel=0.2)
    cards = {row.params["of"] for row in rows if row.metric == "gain_predicted"}
    assert cards == {"h100", "h200", "a100", "rtx5090"}
    record.write(found, machine_of_rows("cpu"), tmp_path, "fewstep plan", ["Qwen/Qwen2.5-7B-Instruct"])
    assert len(read(tmp_path / record.FILE)) == count  # the older predictions are replaced
    assert check.pairs([row for row in rows if row.task == record.TASK]) == ([], {})


def test_on_the_command_line(tmp_path):
    words = ["plan", "--model", LLAMA, "--device", "h100", "--length", "32768"]
    table = run_command_line([*words, "--also", "slim-infer keep=0.5"], tmp_path)
    assert table.returncode == 0 and "slim-infer keep=0.5" in table.stdout and "prefill" in table.stdout, table.stderr
    told = run_command_line([*words, "--json"], tmp_path)
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    (method,) = [one for one in answer["methods"] if one["name"] == "slim-infer"]
    assert [phase["name"] for phase in method["phases"]] == ["prefill", "decode"] and method["gain"] > 1
    assert answer["request"]["length"] == 32768 and answer["machine"]["name"] == "h100"
