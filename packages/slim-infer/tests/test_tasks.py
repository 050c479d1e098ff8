from dataclasses import replace

import pytest
import torch
from fewstep.contract import Loaded
from fewstep.data import texts
from fewstep.data.facts import WORDINGS
from fewstep.errors import UnsupportedModelError
from fewstep.families import causal_lm
from fewstep_slim_infer import SlimInfer
from fewstep_slim_infer.fit import Probe
from fewstep_slim_infer.retrieval import Retrieval
from fewstep_slim_infer.tasks import Continuation, Needle


def seeded():
    return torch.Generator().manual_seed(3)


def test_a_needle_prompt_has_the_length_and_holds_the_code(smollm2):
    tokenizer = smollm2.processor
    for n in range(4):
        fact = Needle(length=640, needles=4).prompt(tokenizer, n, seeded())
        prompt, span, question, code = fact.prompt, fact.span, fact.question, fact.value
        assert prompt.numel() == 640
        assert code in tokenizer.decode(prompt[slice(*span)]) and tokenizer.decode(prompt).endswith(question)
        assert tokenizer.decode(prompt).count(code) == 1
        assert span[0] / 640 == pytest.approx(0.05 + 0.9 * (n + 0.5) / 4, abs=0.15)


def test_the_same_seed_gives_the_same_text(smollm2):
    one, two = (texts.window(smollm2.processor, "python-docs", 200, seeded()) for _ in range(2))
    assert torch.equal(one, two) and one.numel() == 200


def test_a_text_may_be_too_short_for_a_prompt(smollm2):
    with pytest.raises(ValueError, match="take moby-dick"):
        texts.window(smollm2.processor, "python-docs", 100_000, seeded())


def test_retrieval_like_dense_in_less_memory(smollm2):
    task = Needle(length=640, needles=2)
    dense = task.run(smollm2, seeded())
    with SlimInfer(preset="fast").apply(smollm2.model):
        slim = task.run(smollm2, seeded())
    assert dense.quality["accuracy"] == slim.quality["accuracy"] == 1.0
    assert slim.counts["kv_bytes"] < 0.7 * dense.counts["kv_bytes"]


def test_continuation_compares_step_by_step(smollm2):
    task = Continuation(length=640, new_tokens=4)
    dense = task.run(smollm2, seeded())
    with SlimInfer(keep=1.0).apply(smollm2.model):
        same = task.compare(task.run(smollm2, seeded()), dense)
    with SlimInfer(preset="fast").apply(smollm2.model):
        pruned = task.compare(task.run(smollm2, seeded()), dense)
    assert same["kl"] == pytest.approx(0, abs=1e-6) and same["top1_agreement"] == 1.0
    assert same["flop_ratio"] == 1.0 and pruned["flop_ratio"] == pytest.approx(1.78, abs=0.05)
    assert 0 < pruned["kl"] < 3
    assert dense.evidence.shape == (4, 49152) and set(dense.seconds) == {"ttft", "decode"}


@pytest.mark.parametrize("task", [Continuation(length=8192, new_tokens=2), Needle(length=8190)])
def test_more_than_the_model_has_positions(smollm2, task):
    with pytest.raises(ValueError, match="has 8192"):
        task.run(smollm2, seeded())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Needle(length=0), "length must be at least 1, found 0"),
        (lambda: Needle(needles=0), "needles must be at least 1, found 0"),
        (lambda: Continuation(length=-1), "length must be at least 1, found -1"),
        (lambda: Continuation(new_tokens=0), "new_tokens must be at least 1"),
        (lambda: Probe(length=0), "length must be at least 1"),
        (lambda: Probe(every=0), "every must be at least 1"),
    ],
)
def test_impossible_numbers_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_prompt_without_room_for_its_fact(smollm2):
    with pytest.raises(ValueError, match="length=9: the fact and the question alone are"):
        Needle(length=9).run(smollm2, seeded())


def test_a_model_without_a_tokenizer(smollm2):
    with pytest.raises(UnsupportedModelError, match="no language model with a tokenizer"):
        Needle().run(Loaded(model=causal_lm.tiny(), name="tiny"), seeded())


def test_facts_of_the_tuning_half_never_meet_documents_or_wordings_of_the_other(smollm2):
    for split, names in (("tuning", ("python-docs", "characters")), ("held-out", ("tarfile",))):
        task = Retrieval(split=split, length=160, prompts=9, documents=names)
        asked = list(task.questions(smollm2.processor, seeded()))
        wordings = {fact.source.partition(", ")[2] for fact in asked}
        assert wordings <= {w.name for w in WORDINGS if w.split == split} and len(wordings) == 4
        assert {".\n" in fact.question for fact in asked} == {True, False}
    with pytest.raises(ValueError, match="'tarfile' is held-out"):
        Retrieval(split="tuning", documents=("tarfile",))


def test_what_is_kept_is_a_share_of_what_dense_answers(smollm2):
    task = Retrieval(split="tuning", length=256, prompts=3, documents=("python-docs",))
    dense = task.run(smollm2, seeded())
    with SlimInfer(keep=1.0).apply(smollm2.model):
        same = task.run(smollm2, seeded())
    assert dense.quality["accuracy"] > 0 and task.compare(same, dense) == {"kept": 1.0}
    none = replace(dense, evidence=dense.evidence * 0)
    assert task.compare(none, dense) == {"kept": 0.0} and task.compare(dense, none) == {}
