"""Clips of panning worlds: the language of prompts, rendering, and measures of clips whose motion is known."""

from __future__ import annotations

import itertools

import pytest
import torch
from fewstep_zoo.worlds import clips, measures
from fewstep_zoo.worlds.words import Scene, parse


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(count: int, split: clips.Split = "train", seed: int = 0, **how) -> clips.Clips:
    source = generator(seed)
    return clips.make(clips.draw_scenes(count, source), split, source, **how)


def test_every_prompt_reads_back():
    sprites = [None, ((0, 7),), ((1, 0), (4, 9))]
    for scene in itertools.starmap(Scene, itertools.product([None, *range(4)], [None, 0, 1], sprites)):
        assert parse(scene.prompt()) == scene
    assert Scene(0, 0, ((0, 7), (2, 2))).prompt() == "pan right slowly with red seven and blue two"
    assert parse("pan right slowly, with red seven") == Scene(0, 0, ((0, 7),)) and parse("LEFT") == Scene(2)


@pytest.mark.parametrize("prompt", ["cat", "pan sideways", "with red", "pan right with red seven and", "slowly right"])
def test_another_prompt_is_one_sentence_with_the_grammar(prompt: str):
    with pytest.raises(ValueError, match="they read: \\[pan\\]"):
        parse(prompt)


def test_no_image_of_a_digit_is_in_two_splits():
    splits = ("train", "tuning", "held-out")
    seen = [{image.numpy().tobytes() for ten in clips.images(split) for image in ten} for split in splits]
    assert [len(split) > 100 for split in seen] == [True] * 3
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


def test_a_seed_gives_the_same_clips():
    one, same, other = drawn(3), drawn(3), drawn(3, seed=1)
    assert torch.equal(one.pixels, same.pixels) and one.scenes == same.scenes
    assert not torch.equal(one.pixels, other.pixels)
    assert one.pixels.shape == (3, 3, 81, 64, 64) and one.pixels.min() >= -1 and one.pixels.max() <= 1


def test_the_first_frame_decides_the_texture_of_all_others():
    """Without digits, every frame is the first one and its mirror images under a window."""
    made = clips.make([Scene(0, 1, ()), Scene(3, 0, ())], "train", generator())
    for number, (rows, columns) in ((0, (0, 1)), (1, (-0.5, 0))):
        first = made.pixels[number, :, 0]
        whole = torch.cat([first, first.flip(1)], 1)
        whole = torch.cat([whole, whole.flip(2)], 2)
        for frame in (2, 18, 40, 80):
            shifted = whole.roll((-int(rows * frame), -int(columns * frame)), (1, 2))[:, :64, :64]
            assert torch.equal(made.pixels[number, :, frame], shifted)


def test_a_turn_changes_what_follows_and_nothing_before():
    straight = drawn(4, turns=torch.full((4,), 81))
    turned = drawn(4, turns=torch.full((4,), 40))
    assert torch.equal(straight.pixels[:, :, :41], turned.pixels[:, :, :41])
    assert not torch.equal(straight.pixels[:, :, 41], turned.pixels[:, :, 41])
    assert all(a.direction != b.direction for a, b in zip(turned.scenes, turned.turned, strict=True))


def test_motion_is_found_in_true_clips_and_not_in_played_backwards():
    made = drawn(24, "held-out", seed=3)
    frames = made.pixels.transpose(1, 2) / 2 + 0.5
    found = measures.agreement(frames, made.scenes)
    assert found["direction_accuracy"] == 1 and found["speed_accuracy"] >= 0.9
    assert measures.agreement(frames.flip(1), made.scenes)["direction_accuracy"] == 0


def test_steadiness_of_a_true_clip_is_even_and_a_fading_one_drifts():
    frames = drawn(6).pixels.transpose(1, 2) / 2 + 0.5
    true = measures.steadiness(frames)
    assert abs(true["border_change"] - 1) < 0.05 and abs(true["contrast_drift"]) < 0.1
    fading = 0.5 + (frames - 0.5) * torch.linspace(1, 0.5, 81)[:, None, None, None]
    assert measures.steadiness(fading)["contrast_drift"] < -0.3


def test_psnr_by_chunk_tells_where_a_clip_goes_wrong():
    frames = drawn(2).pixels.transpose(1, 2) / 2 + 0.5
    wrong = frames.clone()
    wrong[:, 9:21] += 0.1
    by_chunk = measures.psnr_by_chunk(wrong, frames)
    assert by_chunk.shape == (2, 7)
    assert by_chunk[:, 1].allclose(torch.tensor(20.0), atol=1e-3) and (by_chunk[:, [0, 2, 6]] == 100).all()
