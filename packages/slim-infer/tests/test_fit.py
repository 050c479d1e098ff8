import json

import pytest
import torch
from fewstep.data.facts import PlantedFact
from fewstep.errors import BadFileError, FewstepError
from fewstep.families import causal_lm
from fewstep.fitting import Journal
from fewstep_slim_infer import SlimInfer
from fewstep_slim_infer.fit import Probe, fit, propose


def decode(ids):
    return " ".join(map(str, ids))


@pytest.fixture
def facts():
    """Two prompts for a tiny model whose first generated token counts as the answer."""
    model, made = causal_lm.tiny(), []
    for seed in range(2):
        prompt = causal_lm.tiny_prompt(100, seed=seed)
        first = model.generate(prompt, max_new_tokens=1, do_sample=False)[0, -1]
        made.append(PlantedFact(prompt=prompt[0], span=(40, 50), question="", value=str(int(first)), source=""))
    return model, made


def outcome(model, facts, file):
    """The proposal or the reason why there is none, with a journal in `file`."""
    try:
        return fit(model, facts, decode=decode, journal=Journal(file, {}), block=16, every=2)
    except FewstepError as error:
        return str(error)


def test_a_probe_measures_every_layer_and_resumes(facts, tmp_path):
    model, data = facts
    file = tmp_path / "out" / "probe.jsonl"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = outcome(model, data, file)
    lines = file.read_text().splitlines()
    assert len(lines) == 1 + 2 * 3  # settings; two facts, each dense and without the fact before layers 3 and 5
    assert all(len(ranks) == 5 for ranks in json.loads(lines[1])[1]["ranks"].values())
    file.write_text("\n".join(lines[:-1]) + "\n[[1, 16")  # killed in the middle of a line
    assert outcome(model, data, file) == first
    assert file.read_text().splitlines() == lines
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "forward" not in vars(model.model)


def test_only_what_is_missing_is_measured_again(facts, tmp_path):
    model, data = facts
    file, counted = tmp_path / "probe.jsonl", []
    outcome(model, data, file)
    hook = model.register_forward_hook(lambda *_: counted.append(1))
    outcome(model, data, file)
    assert not counted
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    outcome(model, data, file)
    hook.remove()
    assert counted


def test_the_journal_of_a_folder_belongs_to_one_probe(smollm2, tmp_path):
    Journal(tmp_path / "probe.jsonl", {"model": "another"})
    with pytest.raises(FewstepError, match="other settings"):
        Probe(length=640)(smollm2, tmp_path)


def test_the_log_of_an_older_version_is_refused_by_name(smollm2, tmp_path):
    (tmp_path / "probe.jsonl").write_text('{"key": [0, 32, null, "9916"], "right": true, "ranks": {}}\n')
    with pytest.raises(BadFileError, match="probe.jsonl:1"):
        Probe(length=640)(smollm2, tmp_path)


def table(ranked_from, layers=12):
    ranks = [0.5] * ranked_from + [0.02] * (layers - 1 - ranked_from)
    return {
        "right": True,
        "ranks": {"dot": [0.5] * (layers - 1), "abs_dot": [0.5] * (layers - 1), "unit_softmax": ranks},
    }


def test_the_proposal_follows_the_tables():
    dropped = {layer: [layer >= 8] * 4 for layer in range(2, 12)}
    method = propose([table(5)] * 4, dropped, 12, 32)
    assert method == SlimInfer(entry=(6, 8, 11), keep=0.25, block=32, score="unit_softmax")


def test_no_proposal_without_evidence():
    with pytest.raises(FewstepError, match="answers only 1 of 4"):
        propose([table(5), *[{**table(5), "right": False}] * 3], {}, 12, 32)
    never = {layer: [False] * 4 for layer in range(2, 12)}
    with pytest.raises(FewstepError, match="may be dropped"):
        propose([table(5)] * 4, never, 12, 32)


def test_a_probe_takes_no_held_out_document():
    with pytest.raises(ValueError, match="'tarfile' is held-out; tuning documents"):
        Probe(documents=("tarfile",))
