"""Questions about canvases: what is asked is true, the model reads what its processor makes, and it was trained."""

from __future__ import annotations

import fewstep
import pytest
import torch
from fewstep.train.loop import Loop
from fewstep.train.parallel import World
from fewstep_zoo.vlm import canvas, data, model
from fewstep_zoo.vlm.recipe import Answerer, concentration
from fewstep_zoo.vlm.task import DigitQA
from fewstep_zoo.vlm.words import ASKED, CELLS, FORMS, LANGUAGES, NUMBERS, vocabulary
from PIL import Image


def drawn(count=60, split="test", seed=0, kinds=tuple(FORMS)):
    return canvas.draw(count, split, torch.Generator().manual_seed(seed), kinds)


def test_splits_share_no_image():
    seen = [
        {tuple(image.flatten().tolist()) for image in canvas.images(split)[0]}
        for split in ("train", "calibration", "test")
    ]
    assert sum(map(len, seen)) == 1797 and not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_answers_are_true():
    made = drawn(300)
    for digits, one in zip(made.digits.tolist(), made.asked, strict=True):
        words = one.question.split()
        cells = [digits[CELLS.index(word)] for word in words if word in CELLS]
        if one.kind == "name":
            assert one.answer == LANGUAGES[words[3]][cells[0]]
        elif one.kind == "count":
            assert NUMBERS.index(one.answer) == sum(d != canvas.EMPTY for d in digits)
        elif one.kind == "larger":
            assert NUMBERS.index(one.answer) == max(cells)
        elif one.kind == "sum":
            assert NUMBERS.index(one.answer) == sum(cells)
        elif one.kind == "find":
            assert [NUMBERS[d] for i, d in enumerate(digits) if CELLS[i] == one.answer] == [words[2]]
        else:
            row = "abcd".index(words[2])
            assert one.answer.split() == [NUMBERS[d] for d in digits[4 * row : 4 * row + 4] if d != canvas.EMPTY]
        assert canvas.EMPTY not in cells
    assert {one.kind for one in made.asked} == set(FORMS)
    assert {one.kind for one in drawn(kinds=ASKED).asked} == set(ASKED)


def test_training_reads_what_the_processor_makes():
    made = drawn(5)
    processor = model.processor()
    images = [Image.fromarray(pixels.numpy()) for pixels in made.pixels]
    asked = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": one.question}]}] for one in made.asked
    ]
    texts = [processor.apply_chat_template(one, tokenize=False) for one in asked]
    for n, (image, text) in enumerate(zip(images, texts, strict=True)):
        found = processor(images=[image], text=[text], return_tensors="pt")
        mine = data.conversation([[made.asked[n]]], made.pixels[n : n + 1])
        length = found["input_ids"].shape[1]
        assert torch.equal(found["input_ids"], mine.ids[:, :length])
        assert torch.equal(found["mm_token_type_ids"], mine.types[:, :length])
        torch.testing.assert_close(found["pixel_values"], mine.pixels, rtol=0, atol=1e-6)
        network = model.network()
        where, _ = network.model.get_rope_index(mine.ids, mine.types, image_grid_thw=found["image_grid_thw"])
        assert torch.equal(where, mine.positions)


def test_labels_are_the_tokens_that_follow():
    made = drawn(12)
    talk = data.conversation(
        [[one, other] for one, other in zip(made.asked[:6], made.asked[6:], strict=True)], made.pixels[:6]
    )
    words = list(vocabulary())
    for row, (ids, labels) in enumerate(zip(talk.ids, talk.labels, strict=True)):
        at = talk.scored()[row].nonzero().flatten()
        assert torch.equal(labels[at], ids[at + 1])
        said = " ".join(words[w] for w in labels[at])
        assert said == f"{made.asked[row].answer} <|im_end|> {made.asked[row + 6].answer} <|im_end|>"


def test_concentration():
    flat, single = torch.zeros(3, 8), torch.full((3, 8), -50.0)
    single[:, 0] = 50.0
    assert concentration([flat], 4).item() == pytest.approx(0) and concentration([single], 4).item() == pytest.approx(3)


def test_the_recipe_learns_and_saves_a_folder_that_loads(tmp_path):
    recipe = Answerer(steps=30, batch=8, ema=0.0, spread=0.02)
    job = recipe.build(World())
    loop = Loop(recipe, job, World())
    seen = [loop.step(step)["student/answer"] for step in range(30)]
    assert sum(seen[-5:]) < 0.8 * sum(seen[:5])
    recipe.finish(job, job.objective.roles.main.network, tmp_path)
    loaded = fewstep.load(str(tmp_path))
    assert loaded.processor.tokenizer.get_vocab() == vocabulary()
    again = Answerer(start=tmp_path, kinds=ASKED).build(World()).objective.roles.main.network
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), loaded.model.parameters(), strict=True))


def test_the_trained_model_answers_every_kind_of_question():
    loaded = fewstep.load("digits-qwen3-vl-moe")
    found = DigitQA(questions=500).run(loaded, torch.Generator().manual_seed(7))
    chance = {"name": 0.1, "count": 0.12, "larger": 0.19, "sum": 0.1, "read": 0.1}
    for kind, guessed in chance.items():
        assert found.quality[f"accuracy_{kind}"] > guessed + 0.35, kind
    assert found.counts == {"skipped_share": 0, "skipped_text": 0, "skipped_vision": 0}
    data_of_fit = DigitQA().calibration(loaded, 30, 15, 0)
    assert len(data_of_fit) == 2 and all(part["score_mask"].any(1).all() for part in data_of_fit)


def test_generation_says_what_teacher_forcing_counts():
    loaded = fewstep.load("digits-qwen3-vl-moe")
    made = drawn(8, seed=3, kinds=ASKED)
    part = data.conversation([[one] for one in made.asked], made.pixels)
    with torch.no_grad():
        logits = loaded.model(**part.inputs(), use_cache=False).logits
    for n, one in enumerate(made.asked):
        text = f"<|vision_start|><|image_pad|><|vision_end|> {one.question}"
        inputs = loaded.processor(images=[Image.fromarray(made.pixels[n].numpy())], text=[text], return_tensors="pt")
        full = loaded.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        said = loaded.processor.decode(full[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        mask = part.scored()[n]
        forced = torch.equal(logits[n].argmax(-1)[mask], part.labels[n][mask])
        assert forced == (said == one.answer)
