"""Copies of channels are pruned without loss; every way of pruning leaves a student that decodes."""

from dataclasses import replace

import pytest
import torch
from fewstep_flash_vaed.decoder import WanDecoder, decoder_shape, exact_decoder
from fewstep_flash_vaed.prune import PruningWalk

TIMES = 2


def copied(weight, dim, factor):
    return weight.repeat_interleave(TIMES, dim) * factor


@torch.no_grad()
def expanded(vae):
    """The same decoder with every channel of its last two up-blocks there twice: outputs are the same."""
    small = exact_decoder(vae)
    stages = small.shape.stages

    def widened(number, stage):
        entry = stage.inside * (TIMES if number else 1), stage.width * (TIMES if number else 1)
        return replace(stage, inside=entry[0], width=entry[1], outside=stage.outside * TIMES)

    stages = tuple(widened(number, stage) for number, stage in enumerate(stages))
    big = WanDecoder(replace(small.shape, stages=stages)).eval()
    source, target = small.state_dict(), big.state_dict()
    for name, value in target.items():
        weight = source[name]
        if weight.shape[:1] != value.shape[:1]:
            weight = copied(weight, 0, 1)
        if weight.ndim > 1 and weight.shape[1] != value.shape[1]:
            weight = copied(weight, 1, 1 / TIMES)
        assert weight.shape == value.shape, name
        value.copy_(weight)
    return small, big


@pytest.mark.parametrize("select", ["greedy", "qr"])
@torch.no_grad()
def test_copies_of_channels_are_lost_without_harm(vae, select):
    small, big = (decoder.double() for decoder in expanded(vae))
    latents = [torch.randn(1, 4, 4, 6, 6, generator=torch.Generator().manual_seed(n)).double() for n in range(4)]
    torch.testing.assert_close(big(latents[0]), small(latents[0]), rtol=1e-9, atol=1e-9)
    # the widening first block of up1 takes 8 channels to 16, narrowed ones keep one width throughout
    stages = tuple(replace(s, narrow=n == 2) for n, s in enumerate(small.shape.stages))
    middle = replace(stages[1], inside=16, width=32)
    shape = replace(small.shape, stages=(replace(stages[0], outside=16), middle, stages[2]))
    student = WanDecoder(shape).double().eval()
    choices = PruningWalk(select=select, score="corr", recovery="propagate").run(big, student, latents)
    assert all(len({channel // TIMES for channel in choice.kept}) == len(choice.kept) for choice in choices)
    assert all(choice.r2 == pytest.approx(1, abs=1e-6) for choice in choices)
    torch.testing.assert_close(student(latents[0]), big(latents[0]), rtol=0, atol=1e-5)


@pytest.fixture
def calibration():
    return [torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]


@pytest.mark.parametrize("recovery", ["propagate", "fold", "slice"])
@pytest.mark.parametrize("score", ["corr", "cov", "act"])
@torch.no_grad()
def test_every_way_gives_a_student_that_decodes(vae, teacher, calibration, recovery, score):
    student = WanDecoder(decoder_shape(vae.config, ("separable", "separable", "frame", "frame"), (0, 6, 4))).eval()
    told = []
    choices = PruningWalk(score=score, recovery=recovery, watch=told.append).run(teacher, student, calibration)
    blocks = [f"up{up}.{block}{point}" for up in (1, 2) for block in (0, 1) for point in (".inner", "")]
    assert [choice.point for choice in choices] == ["up1.in", *blocks[:4], "up1.up", *blocks[4:]]
    assert len(told) == len(choices) and all(0 < choice.r2 <= choice.bound + 1e-6 for choice in choices)
    pixels = student(calibration[0])
    assert torch.isfinite(pixels).all() and pixels.shape == teacher(calibration[0]).shape


@torch.no_grad()
def test_all_channels_kept_and_dense_is_the_teacher(vae, teacher, calibration):
    student = WanDecoder(decoder_shape(vae.config)).eval()
    PruningWalk().run(teacher, student, calibration)
    torch.testing.assert_close(student(calibration[0]), teacher(calibration[0]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_frames_that_stand_still_are_decoded_frame_by_frame_as_by_the_teacher(vae, teacher, calibration):
    longer = teacher.decoder.up_blocks[0].upsamplers[0].time_conv
    for weight in (longer.weight, longer.bias):
        first, second = weight.chunk(2)
        second.copy_(first)  # both frames of a latent are equal
    student = WanDecoder(decoder_shape(vae.config, ("dense", "dense", "frame", "frame"), (0, 0, 0))).eval()
    assert PruningWalk().run(teacher, student, calibration) == []
    still = calibration[0][:, :, :1, :4, :4].expand(-1, -1, 40, -1, -1)
    torch.testing.assert_close(student(still)[:, :, -1], teacher(still)[:, :, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recovery", ["propagate", "fold", "slice"])
@torch.no_grad()
def test_a_narrowed_stage_that_keeps_all_channels_is_the_teachers(vae, teacher, calibration, recovery):
    student = WanDecoder(decoder_shape(vae.config, (), (0, 0, 8))).eval()
    choices = PruningWalk(recovery=recovery).run(teacher, student, calibration)
    assert choices and all(choice.kept == tuple(range(8)) for choice in choices)
    torch.testing.assert_close(student(calibration[0]), teacher(calibration[0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("recovery", ["propagate", "fold", "slice"])
@torch.no_grad()
def test_a_wide_stage_may_follow_a_narrow_one(vae, teacher, calibration, recovery):
    student = WanDecoder(decoder_shape(vae.config, ("dense", "dense", "frame", "frame"), (0, 6, 0))).eval()
    PruningWalk(recovery=recovery).run(teacher, student, calibration)
    assert (
        student(calibration[0]).shape == teacher(calibration[0]).shape and torch.isfinite(student(calibration[0])).all()
    )


@torch.no_grad()
def test_separable_convolutions_regressed_on_features_come_closer(vae, teacher, calibration):
    errors = {}
    for recovery in ("propagate", "fold"):
        student = WanDecoder(decoder_shape(vae.config, ("separable", "separable", "dense", "dense"))).eval()
        PruningWalk(recovery=recovery).run(teacher, student, calibration)
        errors[recovery] = float(sum((student(z) - teacher(z)).square().mean() for z in calibration))
    assert errors["propagate"] < errors["fold"]


@torch.no_grad()
def test_regression_on_the_students_own_features_comes_closest(vae, teacher, calibration):
    errors = {}
    for recovery in ("propagate", "fold", "slice"):
        student = WanDecoder(decoder_shape(vae.config, ("dense", "dense", "frame", "frame"), (0, 6, 4))).eval()
        PruningWalk(score="cov", recovery=recovery).run(teacher, student, calibration)
        errors[recovery] = float(sum((student(z) - teacher(z)).square().mean() for z in calibration))
    assert errors["propagate"] < errors["slice"] and errors["fold"] < errors["slice"]


def test_without_calibration(vae, teacher):
    with pytest.raises(ValueError, match="at least one clip"):
        PruningWalk().run(teacher, WanDecoder(decoder_shape(vae.config)), [])
