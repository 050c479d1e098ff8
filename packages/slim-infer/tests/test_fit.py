import json

import pytest
import torch
from fewstep.errors import BadFileError, FewstepError
from fewstep.families import causal_lm
from fewstep_slim_infer import SlimInfer
from fewstep_slim_infer.fit import Fact, propose


def decode(ids):
    return " ".join(map(str, ids))


@pytest.fixture
def facts():
    """Two prompts for a tiny model whose first generated token counts as the answer."""
    model, made = causal_lm.tiny(), []
    for seed in range(2):
        prompt = causal_lm.tiny_prompt(100, seed=seed)
        first = model.generate(prompt, max_new_tokens=1, do_sample=False)[0, -1]
        made.append(Fact(prompt=prompt[0], span=(40, 50), code=str(int(first))))
    return model, made


def probe(model, facts, log, **options):
    return SlimInfer.fit(model, facts, decode=decode, log=log, block=16, every=2, **options)


def test_a_probe_measures_every_layer_and_resumes(facts, tmp_path):
    model, data = facts
    log = tmp_path / "out" / "probe.jsonl"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = _outcome(model, data, log)
    lines = log.read_text().splitlines()
    assert len(lines) == 2 * 3  # two facts, each dense and without the fact before layers 3 and 5
    assert all(len(ranks) == 5 for ranks in json.loads(lines[0])["ranks"].values())
    log.write_text("\n".join(lines[:-1]) + '\n{"key": [1, 16')  # killed in the middle of a line
    assert _outcome(model, data, log) == first
    assert log.read_text().splitlines() == lines
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "forward" not in vars(model.model)


def _outcome(model, data, log):
    try:
        return probe(model, data, log)
    except FewstepError as error:
        return str(error)


def test_only_what_is_missing_is_measured_again(facts, tmp_path):
    model, data = facts
    log, counted = tmp_path / "probe.jsonl", []
    _outcome(model, data, log)
    hook = model.register_forward_hook(lambda *_: counted.append(1))
    _outcome(model, data, log)
    assert not counted
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    _outcome(model, data, log)
    hook.remove()
    assert counted


def test_a_damaged_log_is_named(facts, tmp_path):
    model, data = facts
    log = tmp_path / "probe.jsonl"
    log.write_text("not json\n")
    with pytest.raises(BadFileError, match="probe.jsonl:1"):
        probe(model, data, log)


def table(found_at, layers=12):
    ranks = [0.5] * found_at + [0.02] * (layers - 1 - found_at)
    return {
        "right": True,
        "ranks": {"dot": [0.5] * (layers - 1), "abs_dot": [0.5] * (layers - 1), "unit_softmax": ranks},
    }


def test_the_proposal_follows_the_tables():
    dropped = {(n, 32, layer, "1"): {"right": layer >= 8} for n in range(4) for layer in range(2, 12)}
    method = propose([table(5)] * 4, dropped, 12, 32)
    assert method == SlimInfer(entry=(6, 8, 11), keep=0.25, block=32, score="unit_softmax")


def test_no_proposal_without_evidence():
    with pytest.raises(FewstepError, match="answers only 1 of 4"):
        propose([table(5), *[{**table(5), "right": False}] * 3], {}, 12, 32)
    never = {(n, 32, layer, "1"): {"right": False} for n in range(4) for layer in range(2, 12)}
    with pytest.raises(FewstepError, match="may be dropped"):
        propose([table(5)] * 4, never, 12, 32)
