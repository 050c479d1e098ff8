"""Chat templates that rewrite, drop or refuse the question: the question is found, or one sentence says what failed."""

from __future__ import annotations

import pytest
from fewstep.contract import Loaded
from fewstep.errors import FewstepError
from fewstep.families import causal_lm, vlm

TEMPLATES = {  # template, and what it makes of the question in the prompt
    "plain": ("<s> {{ messages[0].content }} </s>", "w20 w21"),
    "json": ("{{ messages | tojson }} w30", "w20 w21"),
    "escaped": ("w29 {{ messages[0].content | tojson }} w30", r"w20 \"x\" w21"),
    "upper": ("w29 {{ messages[0].content | upper }} w30", "W20 W21"),
    "parts": ("{% for part in messages[0].content %}{{ part.text }}{% endfor %} w30", "w20 w21"),
    "first part": ("w29 {{ messages[0].content[0].text }} w30", "w20 w21"),
    "raises for text": (
        "{% if messages[0].content is string %}{{ raise_exception('parts are needed') }}{% endif %}"
        "w29 {{ messages[0].content[0].text }} w30",
        "w20 w21",
    ),
}


@pytest.fixture
def loaded() -> Loaded:
    """A tiny Llama with a tokenizer of bytes, of which each is a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters, 3)}, []))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain)
    model = causal_lm.tiny(vocab_size=3 + len(letters))
    return Loaded(model=model, name="tiny", processor=tokenizer, weights="random")


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_question_is_found_in_what_the_template_makes_of_it(loaded, tmp_path, name):
    template, made = TEMPLATES[name]
    loaded.processor.chat_template = template
    (tmp_path / "book.txt").write_text("w10 w20 w21 w11")  # the words of the question stand in the document too
    question = 'w20 "x" w21' if name == "escaped" else "w20 w21"
    ids, (start, end) = causal_lm.Ask(prompt=question, prompt_file=str(tmp_path / "book.txt")).tokens(loaded)
    tokens = ids[0].tolist()
    assert loaded.processor.decode(tokens[start : end if end < 0 else None]) == made
    assert "w10" in loaded.processor.decode(tokens) or "W10" in loaded.processor.decode(tokens)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('only tools are served') }}", "TemplateError: only tools are served"),
        ("{{ messages[0].nothing.at.all }}", "UndefinedError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("w3 w4", "it drops the prompt"),
    ],
)
@pytest.mark.parametrize("inputs", [causal_lm.Ask, vlm.Ask])
def test_a_template_that_fails_is_one_sentence(loaded, template, said, inputs):
    class Nothing:
        name = "nothing"

    loaded.processor.chat_template = template
    with pytest.raises(FewstepError, match=rf"cannot write a question \(.*{said}.*\); leave it out with --no-chat"):
        inputs(prompt="w20")(loaded, Nothing())


def test_without_the_template_the_prompt_is_as_it_is(loaded):
    loaded.processor.chat_template = "{{ raise_exception('no') }}"
    ids, (start, end) = causal_lm.Ask(prompt="w20", chat=False).tokens(loaded)
    assert loaded.processor.decode(ids[0]) == "w20" and (start, end) == (-3, 3)
