"""Salt on a pipeline: the user's call, streams, lengths and prompts that do not fit, and the folder that it lies in."""

from __future__ import annotations

import threading

import pytest
import torch
from diffusers import WanPipeline
from fewstep import FewstepError, UnsupportedModelError
from fewstep.families import wan, wan_causal
from fewstep.families.chunk_cache import ChunkCache
from fewstep_salt import Salt
from fewstep_salt.export import CausalFolder

CAUSAL = Salt(steps=(1000, 500), chunk=2)
MOVING = Salt(steps=(1000, 500), chunk=2, window=4, sink=1, relative=True)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def streamed(method, pipe, count, prompt="a cat runs", seed=0):
    stream = method.stream(pipe, prompt, height=32, width=32, generator=seeded(seed))
    return [next(stream) for _ in range(count)]


def test_the_call_of_a_user_makes_each_chunk_from_those_before(pipe, sample):
    calls = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((kwargs["timestep"].tolist(), kwargs["hidden_states"].shape[2])),
        with_kwargs=True,
    )
    with CAUSAL.apply(pipe):
        latents = sample(pipe, num_inference_steps=30, guidance_scale=6.0, negative_prompt="dog")
    chunk = [([1000.0], 2), ([pytest.approx(833.3333)], 2)]
    assert calls == [*chunk, ([0.0], 2), *chunk], "the last chunk needs no cache"

    generator, cache, expected = seeded(), ChunkCache(), []
    with CAUSAL.apply(pipe), torch.no_grad():
        cond = wan.encode_prompts(pipe, ["a cat runs"], 8)
        for _ in range(2):
            noisy = torch.randn(1, 3, 2, 4, 4, generator=generator)
            first = wan_causal.velocity(pipe.transformer, noisy, torch.ones(1), cond, cache)
            fresh = torch.randn(1, 3, 2, 4, 4, generator=generator)
            level = torch.tensor([5 / 6])
            noisy = (noisy - first) / 6 + fresh * 5 / 6
            clean = noisy - 5 / 6 * wan_causal.velocity(pipe.transformer, noisy, level, cond, cache)
            cache = wan_causal.commit(pipe.transformer, clean, cond, cache)
            expected.append(clean)
    torch.testing.assert_close(latents, torch.cat(expected, 2), rtol=1e-4, atol=1e-5)


def test_the_call_and_the_stream_make_the_same_video(pipe, sample):
    with CAUSAL.apply(pipe):
        frames = sample(pipe, output_type="pt", max_sequence_length=512)  # rows of zeros are attended to
        chunks = streamed(CAUSAL, pipe, 2)
    assert frames.shape == (1, 13, 3, 32, 32)
    torch.testing.assert_close(frames, torch.cat([chunk.frames for chunk in chunks], 1), rtol=0, atol=1e-6)


def test_the_pipeline_still_is_what_it_was_for_diffusers(pipe, sample):
    with CAUSAL.apply(pipe):
        assert isinstance(pipe, WanPipeline) and type(pipe).__name__ == "WanPipeline"
        pictures = sample(pipe, output_type="pil", return_dict=False)
    assert len(pictures) == 1 and len(pictures[0]) == 13 and pictures[0][0].size == (32, 32)


def test_several_videos_in_one_call_are_those_made_alone(pipe, sample):
    prompts = ["a cat runs", "a dog sleeps"]
    with CAUSAL.apply(pipe):
        alone = [sample(pipe, prompt) for prompt in prompts]
        together = sample(pipe, prompts, generator=[seeded(), seeded()])
        twice = sample(pipe, num_videos_per_prompt=2)
        given = sample(pipe, prompts, latents=torch.randn(2, 3, 4, 4, 4, generator=seeded()))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    assert twice.shape == given.shape == together.shape and not torch.equal(twice[0], twice[1])


def test_a_video_of_any_length_in_constant_memory(pipe, sample):
    with MOVING.apply(pipe):
        assert sample(pipe, num_frames=157).shape[2] == 40, "the table has 16 positions"
        sizes = [chunk.cache_bytes for chunk in streamed(MOVING, pipe, 12)]
    assert len(set(sizes[1:])) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 9}, "9 frames do not divide into chunks of 2 latent frames: the nearest counts are 5 and 13"),
        ({"num_frames": 3}, "the smallest count is 5"),
        ({"num_frames": 69}, "18 latent frames need more positions than the 16 of this model"),
        ({"height": 40}, "divisible by 16"),
        ({"prompt": "a cat runs " * 3}, "9 tokens and the model reads 8"),
        ({"callback_on_step_end": print}, "callback_on_step_end"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 videos"),
        ({"latents": torch.zeros(1, 3, 3, 4, 4)}, r"latents must be \[b, 3, 4, 4, 4\]"),
    ],
    ids=["frames", "few", "table", "size", "prompt", "callback", "generators", "latents"],
)
def test_a_call_that_does_not_fit_is_refused(pipe, sample, options, message):
    with CAUSAL.apply(pipe), pytest.raises(ValueError, match=message):
        sample(pipe, **options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 2}, "do not fit into a window of 2"),
        ({"window": 4, "sink": 4}, "sink of 4 frames fills the window of 4"),
        ({"sink": 1}, "needs a window"),
        ({"chunk": 0}, "at least one latent frame"),
        ({"eta": 2.0}, "eta must be from 0 to 1"),
        ({"codec": "zip"}, "plain or int8"),
        ({"steps": (750, 500)}, "fall from 1000"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Salt(**fields)


def test_a_count_of_steps_is_that_many_even_steps():
    assert [Salt(steps=(count,)).steps for count in (2, 3, 4)] == [(1000, 500), (1000, 667, 334), Salt().steps]
    assert Salt(steps=(1000,)).steps == (1000,)


def test_a_stream_needs_the_method(pipe):
    with pytest.raises(UnsupportedModelError, match="not causal now"):
        streamed(CAUSAL, pipe, 1)
    with CAUSAL.apply(pipe):
        stream = CAUSAL.stream(pipe, "a cat runs", height=32, width=32)
        next(stream)
    with pytest.raises(UnsupportedModelError, match="not causal now"):
        next(stream)


def test_a_prompt_that_is_too_long_leaves_the_stream_as_it_was(pipe):
    pipe.tokenizer.model_max_length = 8
    with CAUSAL.apply(pipe):
        stream = CAUSAL.stream(pipe, "a cat runs", height=32, width=32)
        with pytest.raises(ValueError, match="the model reads 8"):
            stream.switch("a cat " * 5)
        assert next(stream).start == 0 and stream.prompt == "a cat runs"
        with pytest.raises(ValueError, match="the model reads 8"):
            CAUSAL.stream(pipe, "a cat " * 5, height=32, width=32)


def test_streams_in_threads_do_not_meet(pipe):
    with MOVING.apply(pipe):
        alone = [streamed(MOVING, pipe, 4, seed=seed) for seed in range(3)]
        found: list = [None] * 3

        def work(seed: int) -> None:
            found[seed] = streamed(MOVING, pipe, 4, seed=seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for one, two in zip(alone, found, strict=True):
        assert all(torch.equal(a.frames, b.frames) for a, b in zip(one, two, strict=True))


def test_a_stream_closed_in_the_middle_of_a_chunk_ends_and_holds_nothing(pipe):
    with CAUSAL.apply(pipe):
        stream = CAUSAL.stream(pipe, "a cat runs", height=32, width=32)
        next(stream)
        hook = pipe.transformer.register_forward_hook(lambda *_: stream.close())
        assert list(stream) == [] and stream._cache.nbytes == 0 and not stream._finished
        stream.close()
        hook.remove()


def test_the_folder_of_a_causal_student_holds_the_method(full_file, sample, tmp_path):
    wan.tiny_pipeline().save_pretrained(tmp_path / "base")
    method = Salt(weights=full_file, steps=(2,), chunk=2, window=6, sink=1, size=(13, 32, 32))
    assert CausalFolder(base=str(tmp_path / "base"))(method, tmp_path / "causal") == []
    pipe = WanPipeline.from_pretrained(tmp_path / "causal")
    pipe.set_progress_bar_config(disable=True)
    found = Salt.of(pipe)
    assert found == method and found.weights is None and found.size == (13, 32, 32)
    assert Salt.of(WanPipeline.from_pretrained(tmp_path / "base")) is None
    base = wan.tiny_pipeline()
    with found.apply(pipe), method.apply(base):
        torch.testing.assert_close(sample(pipe), sample(base))
    (tmp_path / "causal" / "fewstep.json").write_text("{")
    with pytest.raises(FewstepError, match="damaged"):
        Salt.of(pipe)


def test_a_network_in_half_precision_keeps_its_tables_in_float32_and_makes_chunks(pipe, sample):
    """diffusers leaves ``scale_shift_table``, the first parameter, in float32: it does not tell the precision."""
    pipe.transformer.to(torch.bfloat16)
    pipe.transformer.scale_shift_table.data = pipe.transformer.scale_shift_table.data.float()
    with CAUSAL.apply(pipe):
        latents = sample(pipe)
    assert torch.isfinite(latents).all() and latents.dtype == torch.float32
