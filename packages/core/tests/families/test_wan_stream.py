"""Streams of a causal Wan: decoding as it goes, constant memory, prompts that change, streams in turn."""

from __future__ import annotations

import itertools

import pytest
import torch
from fewstep import FewstepError
from fewstep.applied import Applied
from fewstep.families import wan, wan_causal
from fewstep.families.chunk_cache import CachePolicy
from fewstep.families.wan_stream import StreamDecoder, StreamOptions, WanStream
from fewstep.flow import StepGrid

OPTIONS = StreamOptions(
    grid=StepGrid((1000, 500)), chunk=2, policy=CachePolicy(window=6, sink=1, relative=True), tokens=4
)


@pytest.fixture
def pipe():
    made = wan.tiny_pipeline()
    with Applied() as undo:
        wan_causal.make_causal(made.transformer, undo)
        yield made


def opened(pipe, prompt="a cat runs", seed=0, options=OPTIONS):
    generator = torch.Generator().manual_seed(seed)
    return WanStream(pipe, prompt, options, height=32, width=32, generator=generator)


def taken(stream, count):
    return list(itertools.islice(stream, count))


def test_decoding_as_it_goes_equals_decoding_the_whole(pipe):
    latents = torch.randn(1, 3, 7, 4, 4, generator=torch.Generator().manual_seed(0))
    whole, decoder = wan.decode(pipe, latents), StreamDecoder(pipe)
    parts = [decoder.decode(part) for part in latents.split(2, 2)]
    assert [part.shape[1] for part in parts] == [5, 8, 8, 4]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-6)


def test_a_stream_outgrows_the_rotary_table_in_constant_memory(pipe):
    chunks = taken(opened(pipe), 12)
    assert [chunk.start for chunk in chunks] == list(range(0, 24, 2))
    assert len({chunk.cache_bytes for chunk in chunks[2:]}) == 1
    assert all(chunk.frames.shape[1:] == (8 if chunk.start else 5, 3, 32, 32) for chunk in chunks)
    assert all(chunk.frames.min() >= 0 and chunk.frames.max() <= 1 and chunk.seconds > 0 for chunk in chunks)


def test_the_same_seed_gives_the_same_video_and_another_another(pipe):
    first, again, other = (taken(opened(pipe, seed=seed), 3) for seed in (1, 1, 2))
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].frames, other[0].frames)


def test_two_streams_in_turn_are_those_read_alone(pipe):
    alone = taken(opened(pipe, seed=1), 4), taken(opened(pipe, "a dog sleeps", seed=2), 4)
    left, right = opened(pipe, seed=1), opened(pipe, "a dog sleeps", seed=2)
    in_turn = zip(*[(next(left), next(right)) for _ in range(4)], strict=True)
    for streams in zip(alone, in_turn, strict=True):
        assert all(torch.equal(one.frames, two.frames) for one, two in zip(*streams, strict=True))


def test_another_prompt_begins_with_the_next_chunk(pipe):
    stayed, switched = opened(pipe), opened(pipe)
    before = taken(stayed, 4), taken(switched, 4)
    assert torch.equal(before[0][3].frames, before[1][3].frames)
    switched.switch("a dog sleeps")
    one, two = next(stayed), next(switched)
    assert two.start == one.start == 8 and two.cache_bytes == one.cache_bytes
    assert not torch.equal(one.frames, two.frames)


def test_switching_to_the_same_prompt_changes_nothing_while_all_is_seen(pipe):
    options = StreamOptions(grid=StepGrid((1000, 500)), chunk=2, tokens=4)
    stayed, switched = opened(pipe, options=options), opened(pipe, options=options)
    taken(stayed, 3), taken(switched, 3)
    switched.switch("a cat runs")
    torch.testing.assert_close(next(switched).frames, next(stayed).frames, rtol=0, atol=1e-5)


def test_closing_ends_it_and_closing_again_does_nothing(pipe):
    with opened(pipe) as stream:
        next(stream)
        stream.close()
        stream.close()
        assert taken(stream, 2) == []


def test_without_a_window_the_table_is_the_end_and_says_so(pipe):
    options = StreamOptions(grid=StepGrid((1000,)), chunk=4, tokens=4)
    stream = opened(pipe, options=options)
    assert len(taken(stream, 4)) == 4
    with pytest.raises(ValueError, match="rotary table"):
        next(stream)


def test_broken_weights_are_told(pipe):
    with torch.no_grad():
        pipe.transformer.proj_out.weight.fill_(float("nan"))
    with pytest.raises(FewstepError, match="not finite"):
        next(opened(pipe))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"chunk": 0}, "at least one"),
        ({"chunk": 4, "policy": CachePolicy(window=4, sink=1)}, "do not fit into a window"),
    ],
)
def test_impossible_options_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        StreamOptions(**fields)


def test_pixels_that_do_not_divide_are_refused(pipe):
    with pytest.raises(ValueError, match="do not fit"):
        WanStream(pipe, "a cat", OPTIONS, height=30, width=32)
