"""Models that read pictures: modalities of tokens, inputs with and without pictures, questions of a user."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from fewstep import Applied, BadFileError, FewstepError, Method, UnsupportedModelError
from fewstep.contract import Loaded
from fewstep.families import causal_lm, tiny_moe, vlm
from fewstep.loaders import without_video
from PIL import Image

MARKS = {"<|image_pad|>": tiny_moe.IMAGE, "<|vision_start|>": tiny_moe.START, "<|vision_end|>": tiny_moe.END}
WORDS = {"what": 10, "is": 11, "this": 12, "a": 13, "dog": 14}
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|> "
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% else %} {{ message['content'] }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {"<unk>": 3, "<pad>": tiny_moe.PAD, "</s>": tiny_moe.EOS, "<|video_pad|>": 93, **MARKS, **WORDS}
    vocabulary = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = [*MARKS, "<|video_pad|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=marks
    )


@pytest.fixture(scope="module")
def seeing(tokenizer: Any) -> Loaded:
    """A tiny Qwen3-VL-MoE with its processor."""
    from transformers import Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    size = {"shortest_edge": tiny_moe.SIDE**2, "longest_edge": tiny_moe.SIDE**2}
    pictures = Qwen2VLImageProcessorPil(patch_size=tiny_moe.PATCH, temporal_patch_size=1, merge_size=2, size=size)
    processor = without_video(Qwen3VLProcessor)(image_processor=pictures, tokenizer=tokenizer, chat_template=TEMPLATE)
    return Loaded(model=tiny_moe.tiny(), name="tiny-vlm", processor=processor)


@pytest.fixture(scope="module")
def blind(tokenizer: Any) -> Loaded:
    """A tiny Qwen3-MoE with a tokenizer and no chat template."""
    return Loaded(model=tiny_moe.tiny("qwen3_moe"), name="tiny-lm", processor=tokenizer)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("L", (48, 48), 130).save(tmp_path / "grey.png")
    return tmp_path / "grey.png"


class Counts(Applied):
    def stats(self) -> dict[str, Any]:
        return {"things": 1}


@dataclass(frozen=True, kw_only=True)
class Nothing(Method):
    """Change nothing, and count one thing."""

    name: ClassVar[str] = "nothing"
    seams: ClassVar[frozenset[str]] = frozenset()

    def apply(self, model: Any) -> Applied:
        return Counts()


def test_modalities_follow_ids_types_and_padding():
    model = tiny_moe.tiny()
    special, vision = vlm.special_ids(model), vlm.vision_ids(model)
    assert vision == (tiny_moe.IMAGE, 93)
    assert set(special) == {tiny_moe.PAD, 1, tiny_moe.EOS, tiny_moe.START, tiny_moe.END}
    ids = torch.tensor([[0, 0, tiny_moe.START, tiny_moe.IMAGE, tiny_moe.END, 10, 93, 2]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    kind = vlm.modality({"input_ids": ids, "attention_mask": mask}, special, vision)
    assert kind.tolist() == [[-1, -1, 0, 2, 0, 1, 2, 0]]
    step = vlm.modality({"input_ids": ids[:, -3:-2], "attention_mask": mask}, special, vision)
    assert step.tolist() == [[1]], "with a cache, the mask is longer than the new tokens"


def test_embeddings_need_types_only_where_there_are_pictures():
    embeds, types = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])
    assert vlm.modality({"inputs_embeds": embeds, "mm_token_type_ids": types}, (), (9,)).tolist() == [[1, 2, 2]]
    assert vlm.modality({"inputs_embeds": embeds}, (), ()).tolist() == [[1, 1, 1]]
    with pytest.raises(ValueError, match="pass mm_token_type_ids"):
        vlm.modality({"inputs_embeds": embeds}, (), (9,))
    with pytest.raises(ValueError, match="without input_ids and inputs_embeds"):
        vlm.modality({"pixel_values": embeds}, (), ())


def test_only_a_model_with_a_picture_token_is_of_this_family():
    model = tiny_moe.tiny()
    assert vlm.check(model) is model.get_decoder()
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM reads no pictures"):
        vlm.check(causal_lm.tiny())


def test_inputs_with_and_without_pictures(seeing: Loaded, blind: Loaded, picture: Path):
    asked = vlm.inputs(seeing, "what is this", [picture])
    cells = [tiny_moe.IMAGE] * 16
    assert asked["input_ids"].tolist() == [[tiny_moe.START, *cells, tiny_moe.END, 10, 11, 12]]
    answered = vlm.inputs(seeing, "what is this", [picture], "a dog")
    assert answered["input_ids"].tolist() == [[*asked["input_ids"][0].tolist(), 13, 14]]
    with torch.no_grad():
        assert seeing.model(**asked).logits.isfinite().all()
    assert "pixel_values" not in vlm.inputs(seeing, "what is this")
    assert vlm.inputs(blind, "what is this", answer="a dog")["input_ids"].tolist() == [[10, 11, 12, 13, 14]]
    with pytest.raises(FewstepError, match="tiny-lm reads no pictures"):
        vlm.inputs(blind, "what is this", [picture])
    with pytest.raises(FewstepError, match="says where pictures stand"):
        vlm.inputs(seeing, "what is this", [picture], template=False)
    with pytest.raises(FewstepError, match="x has no tokenizer or processor"):
        vlm.inputs(Loaded(model=None, name="x"), "what is this")
    with pytest.raises(BadFileError, match="missing.png"):
        vlm.inputs(seeing, "what is this", [picture.with_name("missing.png")])


def test_calibration_data_scores_the_positions_that_predict_the_answer(seeing: Loaded, picture: Path):
    file = picture.with_name("questions.jsonl")
    lines = [{"prompt": "what is this", "answer": "a dog", "image": picture.name}, {"prompt": "this", "answer": "dog"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    batches = vlm.calibration_of_file(file, seeing, 5, 0)
    assert sorted(len(batch["inputs"]["input_ids"][0]) for batch in batches) == [2, 23]
    for batch in batches:
        predicted = batch["inputs"]["input_ids"][0, 1:][batch["score_mask"][0, :-1]].tolist()
        assert predicted in ([13, 14], [14])
    assert len(vlm.calibration_of_file(file, seeing, 1, 0)) == 1
    file.write_text('{"prompt": "what", "answer": ""}\n')
    with pytest.raises(BadFileError, match="questions.jsonl:1 has an empty answer"):
        vlm.calibration_of_file(file, seeing, 1, 0)
    file.write_text('{"prompt": "what"}\n')
    with pytest.raises(BadFileError, match="questions.jsonl:1 is no"):
        vlm.calibration_of_file(file, seeing, 1, 0)


def test_a_question_prints_the_answer_and_what_the_method_counted(
    seeing: Loaded, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "before.txt").write_text("this is a dog\n")
    out = tmp_path / "said.json"
    ask = vlm.Ask(
        prompt="what is this", prompt_file=str(tmp_path / "before.txt"), image=(picture,), max_new_tokens=3,
        compare=True, output=out,
    )  # fmt: skip
    ask(seeing, Nothing())
    answer, *facts = capsys.readouterr().out.splitlines()
    said = json.loads(out.read_text())
    assert facts[0] == f"unchanged model: {answer}" and facts[-1] == "things: 1"
    assert said["answer"] == answer == said["unchanged model"] and said["method"] == "nothing"


def test_questions_that_cannot_be_asked_are_refused(seeing: Loaded):
    with pytest.raises(ValueError, match="the prompt is empty"):
        vlm.Ask(prompt=" ")
    with pytest.raises(FewstepError, match="tiny-vlm does not know cat"):
        vlm.Ask(prompt="what is a cat")(seeing, Nothing())
