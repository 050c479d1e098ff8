"""Streams, causality, exact sizes, receptive field."""

import pytest
import torch
from fewstep.families import wan_vae, wan_vae_cost
from fewstep_flash_vaed.decoder import CACHE, WanDecoder, decoder_shape, preset
from fewstep_flash_vaed.decoding import ClipStream
from fewstep_flash_vaed.fit import student_costs
from fewstep_flash_vaed.layers import Attention

from .conftest import make_vae


@torch.no_grad()
def test_the_whole_clip_is_what_the_frame_loop_gives(vae, teacher, latents):
    torch.testing.assert_close(teacher(latents).clamp(-1, 1), vae.decode(latents).sample, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_exact_decoder_is_on_the_weights_of_the_vae(vae, teacher, latents):
    assert teacher.decoder.conv_in.weight is vae.decoder.conv_in.weight
    vae.post_quant_conv.weight.mul_(2)
    torch.testing.assert_close(teacher(latents), wan_vae.decode(vae, latents), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1, 1), (1, 4), (2, 3), (1, 2, 2), (5,)])
@pytest.mark.parametrize("which", ["teacher", "student"])
@torch.no_grad()
def test_any_chunks_give_the_whole_clip(which, chunks, latents, request):
    decoder = request.getfixturevalue(which)
    stream = ClipStream(lambda _: decoder)
    parts = [stream.push(part) for part in latents.split(list(chunks), 2)]
    assert [part.shape[2] for part in parts] == [2 * n - (i == 0) for i, n in enumerate(chunks)]
    torch.testing.assert_close(torch.cat(parts, 2), decoder(latents).clamp(-1, 1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_long_stream_never_starts_anew_and_remembers_no_more(student):
    latents = torch.randn(1, 4, 105, 2, 2, generator=torch.Generator().manual_seed(0))
    stream, sizes, parts = ClipStream(lambda _: student), [], []
    for part in latents.split(1, 2):
        parts.append(stream.push(part))
        sizes.append(sum(kept.numel() for kept in stream.memory.values()))
    assert torch.cat(parts, 2).shape[2] == 1 + 2 * 104
    torch.testing.assert_close(torch.cat(parts, 2), student(latents).clamp(-1, 1), rtol=1e-5, atol=1e-5)
    assert len(set(sizes[4:])) == 1
    assert all(kept.untyped_storage().nbytes() == kept.nbytes for kept in stream.memory.values())


@torch.no_grad()
def test_streams_do_not_mix(student, latents):
    other = latents.flip(2)
    one, two = ClipStream(lambda _: student), ClipStream(lambda _: student)
    pairs = [(one.push(a), two.push(b)) for a, b in zip(latents.split(1, 2), other.split(1, 2), strict=True)]
    for n, clip in enumerate((latents, other)):
        whole = torch.cat([pair[n] for pair in pairs], 2)
        torch.testing.assert_close(whole, student(clip).clamp(-1, 1), rtol=1e-5, atol=1e-5)


def test_a_stream_says_what_is_wrong(student, latents):
    stream = ClipStream(lambda _: student)
    with pytest.raises(ValueError, match=r"latents \[b, 4"):
        stream.push(latents[:, :3])
    with pytest.raises(ValueError, match="at least one frame"):
        stream.push(latents[:, :, :0])
    stream.push(latents)
    with pytest.raises(ValueError, match="another size|b, h, w"):
        stream.push(latents[..., :3])
    stream.close()
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.push(latents)


@pytest.mark.parametrize("which", ["teacher", "student"])
@torch.no_grad()
def test_the_past_does_not_depend_on_the_future(which, latents, request):
    decoder = request.getfixturevalue(which)
    before = decoder(latents)
    for t in (1, 3, 4):
        changed = latents.clone()
        changed[:, :, t:] += 1
        after = decoder(changed)
        assert torch.equal(after[:, :, : 1 + 2 * (t - 1)], before[:, :, : 1 + 2 * (t - 1)])
        assert not torch.equal(after[:, :, 1 + 2 * (t - 1) :], before[:, :, 1 + 2 * (t - 1) :])


@torch.no_grad()
def test_late_stages_see_one_frame_and_the_head_three(student):
    late = student.decoder.up_blocks[1]
    x = torch.randn(1, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 2] += 1
    one, two = (student.decoder.up_blocks[2](late(clip)) for clip in (x, changed))
    assert [bool((one[:, t] != two[:, t]).any()) for t in range(6)] == [t == 2 for t in range(6)]
    one, two = (student.decoder.conv_out(student.decoder.norm_out(clip)) for clip in (one, two))
    assert [bool((one[:, t] != two[:, t]).any()) for t in range(6)] == [2 <= t <= 4 for t in range(6)]


def test_the_sizes_of_wan_are_exact():
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        config = AutoencoderKLWan().config
        student = WanDecoder(decoder_shape(config, *preset(config)))
    assert preset(config) == (("separable", "separable", "separable", "frame", "frame"), (0, 0, 24, 12))
    assert student(torch.empty(1, 16, 21, 60, 104, device="meta")).shape == (1, 3, 81, 480, 832)
    assert sum(weight.numel() for weight in student.decoder.parameters()) == 5_859_723
    costs = student_costs(config, student.shape, (81, 480, 832))
    assert costs["total"].parameters == 5_859_723 + 272
    assert costs["total"].macs == round(4.25970634752e12)
    assert round(costs["up1"].macs / 1e12, 3) == 0.964 and round(costs["up1 resample"].macs / 1e12, 3) == 1.554
    assert costs.keys() == wan_vae_cost.decoder_costs(config, 81, 480, 832).keys()


def test_a_shape_that_does_not_fit_is_named(vae):
    with pytest.raises(ValueError, match="4 operators and 3 widths"):
        decoder_shape(vae.config, ("dense", "frame"), (0, 4, 4))
    with pytest.raises(ValueError, match="first up-block cannot be narrowed"):
        decoder_shape(vae.config, (), (4, 4, 4))
    with pytest.raises(ValueError, match="cannot be kept"):
        decoder_shape(vae.config, (), (0, 9, 4))
    for operators, widths in (((), (0, 4, 0)), (("dense", "dense", "dense", "separable"), (0, 0, 4))):
        longer = make_vae(temperal_downsample=[True, True]).config if not operators else vae.config
        with pytest.raises(ValueError, match="separable or upsamples time"):
            decoder_shape(longer, operators, widths)
    with pytest.raises(TypeError, match="Wan 2.2"):
        decoder_shape(make_vae(is_residual=True).config)


def test_frames_that_are_computed_few_at_a_time_are_the_same(student):
    latents = torch.randn(1, 4, 4, 56, 50, generator=torch.Generator().manual_seed(0))
    up, feature = student.decoder.up_blocks[-1], torch.empty(1, 7, 4, 224, 200)
    assert up.by_frame and feature.nbytes > CACHE, "this would not be split"
    with torch.no_grad():
        split = student(latents)
    torch.testing.assert_close(split, student(latents).detach(), rtol=1e-5, atol=1e-5)


def test_pooled_attention_reads_means_of_squares():
    plain, pooled = Attention(8), Attention(8, pool=2)
    pooled.load_state_dict(plain.state_dict())
    x = torch.randn(1, 2, 8, 5, 6, generator=torch.Generator().manual_seed(0))
    flat = x.flatten(0, 1)
    normed = torch.nn.functional.normalize(flat, dim=1) * 8**0.5 * plain.norm["gamma"]
    query, key, value = plain.to_qkv(normed).chunk(3, 1)
    squares = [(slice(r, r + 2), slice(c, c + 2)) for r in (0, 2, 4) for c in (0, 2, 4)]
    keys, values = (torch.stack([part[:, :, r, c].mean((2, 3)) for r, c in squares], 2) for part in (key, value))
    shares = (query.flatten(2).mT @ keys / 8**0.5).softmax(-1)
    wanted = x + plain.proj((shares @ values.mT).mT.unflatten(2, (5, 6)).contiguous()).unflatten(0, (1, 2))
    torch.testing.assert_close(pooled(x), wanted, rtol=1e-5, atol=1e-5)
    same = x[..., :1, :1].expand(x.shape)
    torch.testing.assert_close(pooled(same), plain(same), rtol=1e-5, atol=1e-5)
