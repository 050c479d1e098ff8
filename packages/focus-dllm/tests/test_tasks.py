"""The tasks, `fit` and `describe`, on tiny models and on the wired one."""

import json
import math

import pytest
import torch
from fewstep.bench import Outcome
from fewstep.contract import Loaded
from fewstep.errors import BadFileError, UnsupportedModelError
from fewstep.families import causal_lm
from fewstep_focus_dllm import Decoding, FastDLLM, FocusDLLM
from fewstep_focus_dllm.confidence import correlation, coverage
from fewstep_focus_dllm.describe import describe
from fewstep_focus_dllm.fit import fit
from fewstep_focus_dllm.state import Trace
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
    found = []
    for confidence, masked, unmasked in steps:
        flags = torch.zeros(2, 1, len(confidence), dtype=torch.bool)
        flags[0, 0, masked], flags[1, 0, unmasked] = True, True
        found.append(Trace(torch.tensor([confidence], dtype=torch.float64), flags[0], flags[1]))
    return found


def test_correlation_and_coverage_by_hand():
    steps = trace(
        [
            ([0.9, 0.2, 0.4, 0.6], [0, 1, 2, 3], [0]),
            ([0.9, 0.3, 0.5, 0.7], [1, 2, 3], [3]),
            ([0.9, 0.6, 0.5, 0.7], [1, 2], [1]),
        ]
    )
    assert correlation(steps) == pytest.approx(1.0)  # of the first pair; the second has two positions only
    assert coverage(steps, 1) == 0.5  # 3 was the surest before, 1 was not
    assert coverage(steps, 2) == 1.0


def test_steps_of_different_blocks_are_not_compared():
    assert math.isnan(coverage(trace([([0.9, 0.8], [0, 1], [0]), ([0.9, 0.8], [0, 1], [1])]), 1))


def test_fit_proposes_a_method_and_goes_on_from_its_log(llada, prompt, tmp_path):
    data, log = [prompt(40, seed=s)[0] for s in range(3)], tmp_path / "probe.jsonl"
    decoding = Decoding(gen_length=16, block_length=8, stop_at_eos=False)
    whole = fit(llada, data, decoding=decoding, sinks=4, log=log)
    assert isinstance(whole, FocusDLLM) and 0 <= whole.last_dense < 4 and whole.min_focus in (1, 2, 4, 8, 16)
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:2]) + "\n" + lines[2][:20])  # killed while it wrote the third
    seen = []
    again = fit(
        llada, data, decoding=decoding, sinks=4, log=log, track=lambda steps, total: seen.append(total) or steps
    )
    assert again == whole and log.read_text().splitlines() == lines and seen == [3]
    assert set(json.loads(lines[0])) == {"key", "coverage", "overlap"}
    log.write_text("no json\n")
    with pytest.raises(BadFileError, match="probe.jsonl:1"):
        fit(llada, data, decoding=decoding, sinks=4, log=log)
    with pytest.raises(BadFileError, match="--no-resume"):
        FocusDLLM.fit(llada, data, decoding=decoding, sinks=4, log=log)


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
    found = dict(describe(LLADA, Path()))
    assert "8.02 G parameters in 291 tensors" in found["weights"]
    assert found["layers"].startswith("32: 0 to 7 dense")
    assert "16.12 GiB" in found["prompt of 32,768"] and "more than the model's positions" in found["prompt of 8,192"]


def test_other_models_are_not_described():
    with pytest.raises(UnsupportedModelError, match="llama"):
        describe(causal_lm.tiny().config, Path())
