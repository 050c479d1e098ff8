import pytest
import torch
from fewstep.data import documents
from fewstep.data.documents import DOCUMENTS, Document, named
from fewstep.data.facts import WORDINGS, PlantedFact, ask
from fewstep.errors import AssetMissing


class Words:
    """A tokenizer of words and line ends, as ids of its own."""

    def __init__(self):
        self.known = {}

    def __call__(self, text, add_special_tokens=True):
        pieces = [piece for line in text.split("\n") for piece in [*line.split(" "), "\n"]][:-1] if text else []
        return {"input_ids": [self.known.setdefault(piece, len(self.known)) for piece in pieces]}

    def decode(self, ids):
        back = {number: piece for piece, number in self.known.items()}
        return " ".join(back[i] for i in ([ids] if isinstance(ids, int) else ids))


@pytest.fixture
def document():
    """A document of 2,000 lines of three words, of the half that is asked for."""

    def make(split):
        return Document(
            name="lines", kind="table", split=split, source=lambda: "\n".join(f"one two {i}" for i in range(2000))
        )

    return make


def asked_about(document, wording=0, *, length=400, depth=0.5, facts=1, seed=0, tokenizer=None):
    """A prompt about `document` in the given wording of its half."""
    own = [w for w in WORDINGS if w.split == document.split][wording]
    generator = torch.Generator().manual_seed(seed)
    return ask(tokenizer or Words(), document, own, length=length, depth=depth, facts=facts, generator=generator)


def test_documents_and_wordings_come_in_two_halves_of_many_kinds():
    halves = {split: [d.kind for d in DOCUMENTS.values() if d.split == split] for split in ("tuning", "held-out")}
    assert len(DOCUMENTS) >= 8 and all(len(kinds) >= 4 for kinds in halves.values())
    assert {"licence", "novel", "speeches", "code", "manual", "table", "dialogue"} <= {*sum(halves.values(), [])}
    assert len(WORDINGS) >= 6 and {w.split for w in WORDINGS} == {"tuning", "held-out"}
    assert len({w.name for w in WORDINGS}) == len({w.fact for w in WORDINGS}) == len(WORDINGS)


def test_a_document_of_the_other_half_is_refused():
    with pytest.raises(ValueError, match="'moby-dick' is held-out; tuning documents: python-docs"):
        named(("moby-dick",), "tuning")
    with pytest.raises(ValueError, match="no document 'bible'"):
        named(("bible",), "held-out")
    assert {d.split for d in named((), "held-out")} == {"held-out"}


@pytest.mark.parametrize("name", ["python-docs", "argparse", "characters", "tarfile"])
def test_documents_of_python_itself_are_always_here(name):
    assert len(DOCUMENTS[name].read()) > 50_000


def test_a_document_that_is_not_here_names_its_command():
    missing = Document(
        name="x", kind="licence", split="tuning", source=lambda: documents._licence("fewstep-no-such-thing")
    )
    with pytest.raises(AssetMissing, match="pip install fewstep-no-such-thing"):
        missing.read()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("split", ["tuning", "held-out"])
def test_a_prompt_has_its_length_and_holds_the_fact_it_asks_for(document, split, count):
    tokenizer = Words()
    for number, wording in enumerate(w for w in WORDINGS if w.split == split):
        asked = asked_about(document(split), number, facts=count, seed=number, tokenizer=tokenizer)
        text = tokenizer.decode(asked.prompt.tolist())
        assert asked.prompt.numel() == 400 and text.endswith(asked.question.split("\n")[-1])
        planted = tokenizer.decode(asked.prompt[slice(*asked.span)].tolist())
        assert asked.value in planted and text.count(planted.strip()) == 1
        assert asked.question.count(wording.question.split("{a}")[-1]) == count


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("depth", [0.0, 0.3, 0.7, 0.999])
def test_the_fact_lies_where_it_should(document, depth, count):
    start = asked_about(document("held-out"), length=2000, depth=depth, facts=count).span[0]
    assert start / 2000 == pytest.approx(depth, abs=0.05)


def test_documents_and_wordings_of_two_halves_are_not_mixed(document):
    with pytest.raises(ValueError, match="lines is held-out, and the wording 'code' is tuning"):
        ask(Words(), document("held-out"), WORDINGS[0], length=99, depth=0, facts=1, generator=torch.Generator())


def test_the_same_seed_gives_the_same_prompt(document):
    one, two, other = (asked_about(document("tuning"), facts=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.prompt, two.prompt) and one.value == two.value
    assert one.value != other.value or not torch.equal(one.prompt, other.prompt)


def test_a_document_may_be_too_short(document):
    with pytest.raises(ValueError, match="lines has fewer than"):
        asked_about(document("tuning"), length=100_000)


def test_an_answer_is_right_when_it_holds_the_value():
    asked = PlantedFact(prompt=torch.zeros(1), span=(0, 1), question="", value="391", source="")
    assert asked.answered_by(" 3 9 1.") and not asked.answered_by("39")
