"""Clips of moving digits: the language of prompts, drawing, and metrics of known clips."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from fewstep_zoo.digits import clips, measures
from fewstep_zoo.digits.words import DIGITS, DIRECTIONS, SPEEDS, Label, parse


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(count: int = 400, split: clips.Split = "train", seed: int = 0) -> clips.Clips:
    source = generator(seed)
    return clips.make(clips.draw_labels(count, source), split, source)


def test_every_prompt_reads_back():
    choices = itertools.product(range(10), [None, *range(8)], [None, 0, 1])
    for label in (Label(), *itertools.starmap(Label, choices)):
        assert parse(label.prompt()) == label
    assert Label(3, 0, 1).prompt() == "three moving right fast" and Label(3).prompt() == "three"
    assert parse("  Three moving FAST ") == Label(3, None, 1)


@pytest.mark.parametrize("prompt", ["cat", "moving right", "three cats", "three moving fast right", "three slow slow"])
def test_another_prompt_is_one_sentence_with_the_grammar(prompt: str):
    with pytest.raises(ValueError, match="they read: DIGIT"):
        parse(prompt)


def test_the_images_are_the_real_ones_and_the_splits_share_none():
    (train, many), (held_out, few) = clips.images("train"), clips.images("held-out")
    assert len(train) == int(many.sum()) == 1437 and len(held_out) == int(few.sum()) == 360
    assert train.min() == 0 and train.max() == 1
    shared = {image.numpy().tobytes() for image in train} & {image.numpy().tobytes() for image in held_out}
    assert not shared


def test_a_seed_gives_the_same_clips():
    one, same, other = drawn(8), drawn(8), drawn(8, seed=1)
    assert torch.equal(one.pixels, same.pixels) and one.labels() == same.labels()
    assert not torch.equal(one.pixels, other.pixels)
    assert one.pixels.shape == (8, *clips.SHAPE) and one.pixels.min() == -1 and one.pixels.max() <= 1


def test_labels_are_drawn_as_stated():
    labels = clips.draw_labels(4000, generator())
    assert {a.digit for a in labels} == set(range(len(DIGITS)))
    assert {a.direction for a in labels} == set(range(len(DIRECTIONS)))
    fast = sum(a.speed == SPEEDS.index("fast") for a in labels) / len(labels)
    assert abs(fast - clips.FAST) < 4 * math.sqrt(0.3 * 0.7 / 4000)


def test_an_image_at_a_whole_corner_is_the_image_and_between_corners_the_mean():
    image = clips.images("train")[0][:2]
    corner = torch.tensor([[3.0, 5.0], [3.0, 5.5]]).expand(2, 2, 2)
    frames = clips.render(image, corner)[:, 0]
    expected = torch.full((2, 16, 16), -1.0)
    expected[:, 3:11, 5:13] = 2 * image - 1
    assert torch.allclose(frames[:, 0], expected)
    assert torch.allclose(frames[:, 1], (expected + expected.roll(1, 2)) / 2)


def test_a_clip_moves_as_its_prompt_says():
    """The ink itself moves right by the stated distance in the first steps, whatever the digit."""
    made = drawn()
    ink = (made.pixels[:, 0].double() + 1) / 2
    total = ink.sum((-2, -1))
    rows = (ink.sum(-1) @ torch.arange(16.0).double()) / total
    columns = (ink.sum(-2) @ torch.arange(16.0).double()) / total
    steps = torch.stack([rows, columns], -1).diff(dim=1)[:, : clips.KEPT]
    assert torch.allclose(steps, clips.velocity(made.direction, made.speed)[:, None].double(), atol=1e-5)


def test_a_digit_that_meets_the_edge_comes_back():
    start, moved = torch.tensor([[0.0, 6.0]]), torch.tensor([[0.0, 1.5]])
    columns = clips.positions(start, moved)[0, :, 1]
    assert torch.allclose(columns, torch.tensor([6.0, 7.5, 7.0, 5.5, 4.0, 2.5]))
    assert (drawn().pixels.sum((-2, -1)).diff(dim=2).abs() < 1e-3).all()  # no ink leaves the canvas


def test_a_clip_of_an_open_prompt_is_refused():
    with pytest.raises(ValueError, match="needs a digit, a direction and a speed"):
        clips.make([Label(3)], "train", generator())


def test_frechet_distance_of_known_gaussians():
    raw = torch.randn(500, 5, generator=generator(), dtype=torch.float64)
    centred = raw - raw.mean(0)
    white = centred @ torch.linalg.inv(torch.linalg.cholesky(centred.T.cov())).mT
    other = 3 * white + torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0])
    assert measures.frechet(white, other) == pytest.approx(5 + 5 * (3 - 1) ** 2)
    assert measures.frechet(white, white) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="at least two"):
        measures.frechet(white[:1], other)


def test_motion_is_that_of_the_clips():
    made = drawn()
    slow, fast = (measures.motion(made.pixels[made.speed == speed]) for speed in (0, 1))
    assert slow["motion"] == pytest.approx(0.3, abs=0.03) and fast["motion"] == pytest.approx(1.0, abs=0.06)
    assert slow["fast_fraction"] == 0 and fast["fast_fraction"] > 0.95
    assert slow["frame_change"] < fast["frame_change"]


def test_noise_is_what_was_added():
    """Real clips have next to none, Gaussian noise is read off as it is, frames of many clips are no rigid motion."""
    made = drawn(64).pixels
    assert measures.noise(made).max() < 0.04
    for sigma in (0.1, 0.3):
        noisy = made + sigma * torch.randn(made.shape, generator=generator())
        assert measures.noise(noisy).mean().item() == pytest.approx(sigma, rel=0.1)
    shuffled = torch.stack([made[:, :, f].roll(f, 0) for f in range(clips.FRAMES)], 2)
    assert measures.noise(shuffled).mean() > 0.1
