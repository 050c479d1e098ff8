"""Tasks, fitting and `describe`, on tiny models and on the wired one."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from fewstep.bench import Outcome
from fewstep.contract import Loaded
from fewstep.errors import FewstepError, UnsupportedModelError
from fewstep.families import causal_lm
from fewstep_focus_dllm import FastDLLM, FocusDLLM
from fewstep_focus_dllm.cost import describe
from fewstep_focus_dllm.decoding import Trace, correlation, coverage
from fewstep_focus_dllm.fit import Probe
from fewstep_focus_dllm.tasks import Agreement, Latency, Retrieval


@pytest.fixture
def loaded(llada):
    return Loaded(model=llada, name="tiny", weights="random")


def run(task, loaded, method=None, seed=0) -> Outcome:
    generator = torch.Generator().manual_seed(seed)
    if method is None:
        return task.run(loaded, generator)
    with method.apply(loaded.model):
        return task.run(loaded, generator)


def test_latency_times_a_whole_response_and_extrapolates_vanilla(loaded, focus):
    task = Latency(length=64, gen_length=16, block_length=8)
    dense, fast, sparse = (run(task, loaded, m) for m in (None, FastDLLM(), focus()))
    assert dense.counts["steps_timed"] == 2 and "cached_step" not in dense.seconds
    assert dense.seconds["generate"] == pytest.approx(16 * dense.seconds["refresh"])
    for cached in (fast, sparse):
        assert set(cached.seconds) == {"generate", "refresh", "cached_step"} and "steps_timed" not in cached.counts
    assert dense.counts["tflop"] > fast.counts["tflop"] > sparse.counts["tflop"] > 0
    assert sparse.counts["rows_per_step"] < 8 == fast.counts["rows_per_step"]
    assert sparse.counts["keys_read"] < 80 == fast.counts["keys_read"]


def test_a_small_latency_compares_tokens_at_the_identity_setting(loaded):
    task = Latency(length=64).small()
    assert torch.equal(run(task, loaded).evidence, run(task, loaded, FocusDLLM().identity()).evidence)


def test_the_wired_model_answers_exactly_and_pruning_can_lose_records(zoo):
    wired = zoo("wired-recall")
    task = Retrieval(length=256, records=16, gen_length=16, block_length=8, prompts=1)
    dense = run(task, wired)
    assert dense.quality["accuracy"] == 1.0
    whole = run(task, wired, FocusDLLM().identity())
    assert task.compare(whole, dense) == {"top1_agreement": 1.0}
    kept = FocusDLLM(keep=0.5, keep_floor=0, prompt_block=8, units=True)
    lost = FocusDLLM(keep=0.05, keep_floor=0, prompt_block=64, sinks=0)
    assert run(task, wired, kept).quality["accuracy"] > run(task, wired, lost).quality["accuracy"]


def test_sinks_matter_on_the_wired_model(zoo):
    """Its look-ups are spoilt by noise where the sink is not read; the same blocks, with and without sinks."""
    wired = zoo("wired-recall")
    task = Retrieval(length=256, records=16, gen_length=16, block_length=8, prompts=1)
    method = {"keep": 0.5, "keep_floor": 0, "prompt_block": 8, "units": True}
    assert run(task, wired, FocusDLLM(**method, sinks=0)).quality["accuracy"] < 0.5
    assert run(task, wired, FocusDLLM(**method, sinks=4)).quality["accuracy"] > 0.8


def test_tasks_say_what_they_need(loaded):
    with pytest.raises(UnsupportedModelError, match="wired-recall"):
        run(Retrieval(), loaded)
    with pytest.raises(UnsupportedModelError, match="no tokenizer"):
        run(Agreement(), loaded)


def trace(steps):
    """A trace of one sequence from lists of (confidences, masked positions, unmasked positions)."""
    traces = []
    for confidence, masked, unmasked in steps:
        flags = torch.zeros(2, 1, len(confidence), dtype=torch.bool)
        flags[0, 0, masked], flags[1, 0, unmasked] = True, True
        traces.append(Trace(torch.tensor([confidence], dtype=torch.float64), flags[0], flags[1]))
    return traces


def test_correlation_and_coverage_by_hand():
    steps = trace(
        [
            ([0.9, 0.2, 0.4, 0.6], [0, 1, 2, 3], [0]),
            ([0.9, 0.3, 0.5, 0.7], [1, 2, 3], [3]),
            ([0.9, 0.6, 0.5, 0.7], [1, 2], [1]),
        ]
    )
    assert correlation(steps) == pytest.approx(1.0)  # of the first pair; the second has two positions only
    assert coverage(steps, 1) == 0.5  # 3 had the highest confidence before, 1 had not
    assert coverage(steps, 2) == 1.0


def test_steps_of_different_blocks_are_not_compared():
    assert math.isnan(coverage(trace([([0.9, 0.8], [0, 1], [0]), ([0.9, 0.8], [0, 1], [1])]), 1))


def test_a_probe_proposes_a_method_and_goes_on_from_its_journal(loaded, tmp_path):
    probe = Probe(length=40, prompts=3, gen_length=16, block_length=8, sinks=4)
    whole = probe(loaded, tmp_path)
    assert isinstance(whole, FocusDLLM) and 0 <= whole.last_dense < 4 and whole.min_focus in (1, 2, 4, 8, 16)
    journal = tmp_path / "probe.jsonl"
    lines = journal.read_text().splitlines()
    assert len(lines) == 4 and set(json.loads(lines[1])[1]) == {"coverage", "overlap"}
    known = json.dumps([0, {"coverage": dict.fromkeys(["1", "2", "4", "8", "16"], 1.0), "overlap": [0.0, 1.0, 0.0]}])
    journal.write_text("\n".join([lines[0], known, lines[2]]) + "\n" + lines[3][:20])  # killed while it wrote the third
    probe(loaded, tmp_path)
    assert journal.read_text().splitlines() == [lines[0], known, *lines[2:]]
    assert dataclasses.replace(probe, prompts=1)(loaded, tmp_path) == FocusDLLM(last_dense=1, min_focus=1, sinks=4)
    with pytest.raises(FewstepError, match="--no-resume"):
        dataclasses.replace(probe, seed=1)(loaded, tmp_path)
    assert dataclasses.replace(probe, resume=False)(loaded, tmp_path) == whole


LLADA = {
    "model_type": "llada",
    "d_model": 4096,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "mlp_hidden_size": 12288,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "block_type": "llama",
    "rope": True,
    "weight_tying": False,
    "mask_token_id": 126336,
    "eos_token_id": 126081,
    "pad_token_id": 126081,
    "max_sequence_length": 4096,
}


def test_a_real_llada_is_described_from_its_configuration():
    findings = dict(describe(LLADA, Path()))
    assert "8.02 G parameters in 291 tensors" in findings["weights"]
    assert findings["layers"] == "32" and findings["dense layers"].startswith("0 to 7;")
    assert "16.12 GiB" in findings["prompt of 32,768"]
    assert "more than the model's positions" in findings["prompt of 8,192"]


def test_other_models_are_not_described():
    with pytest.raises(UnsupportedModelError, match="llama"):
        describe(causal_lm.tiny().config, Path())
