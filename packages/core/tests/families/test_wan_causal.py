"""Causal Wan against full recomputation, its windows against chunk numbers, and what its cache promises."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fewstep import UnsupportedModelError
from fewstep.applied import Applied
from fewstep.families import chunk_attention, wan, wan_causal
from fewstep.families.chunk_cache import CachePolicy, ChunkCache, Int8

CHUNK, CHUNKS = 2, 4


@pytest.fixture
def network():
    """A tiny Wan of three layers whose output layer is not zero, made causal."""
    made = wan.tiny(num_layers=3).double()
    with Applied() as undo:
        wan_causal.make_causal(made, undo)
        yield made


@pytest.fixture
def condition():
    return torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def clip(seed, frames=CHUNK * CHUNKS):
    return torch.randn(2, 3, frames, 4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cached(network, clean, noisy, sigma, condition, cache):
    """Velocities chunk by chunk, and the cache at the end."""
    out = []
    for first in range(0, clean.shape[2], CHUNK):
        part = slice(first, first + CHUNK)
        out.append(wan_causal.velocity(network, noisy[:, :, part], sigma[:, first], condition, cache))
        cache = wan_causal.commit(network, clean[:, :, part], condition, cache)
    return torch.cat(out, 2), cache


def chunk_levels():
    return torch.tensor([[0.9, 0.4, 1.0, 0.1], [0.3, 0.8, 0.5, 0.7]]).double().repeat_interleave(CHUNK, 1)


@torch.no_grad()
def windowed(network, clean, noisy, sigma, condition, policy):
    """The whole clip in one pass in which each frame sees only what the window leaves it."""
    count = CHUNK * CHUNKS
    mask = wan_causal.teacher_forcing_mask(count, CHUNK)
    at = torch.arange(count)
    own = (at // CHUNK * CHUNK)[:, None]  # first frame of each frame's chunk
    seen = (at[None] >= own - (policy.window - CHUNK - policy.sink)) | (at[None] < policy.sink)
    allowed = torch.cat([torch.cat([seen, seen], 1), torch.cat([seen, torch.ones_like(seen)], 1)])
    tokens = 2 * 3
    mask = (mask & allowed).repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    times = torch.cat([torch.zeros_like(sigma), 1000 * sigma], 1).repeat_interleave(tokens, 1)
    call = wan_causal.ChunkCall(at.repeat(2), mask=mask)
    return wan_causal._forward(network, torch.cat([clean, noisy], 2), times, condition, call)[:, :, count:]


class TestAgainstFullRecomputation:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
    @torch.no_grad()
    def test_s8_cached_equals_one_pass_with_a_mask(self, network, condition, dtype, tolerance):
        network.to(dtype)
        clean, noisy, sigma, condition = (part.to(dtype) for part in (clip(2), clip(3), chunk_levels(), condition))
        whole = wan_causal.teacher_forced(network, clean, noisy, sigma, condition, CHUNK)
        chunks, cache = cached(network, clean, noisy, sigma, condition, ChunkCache())
        torch.testing.assert_close(chunks, whole, rtol=0, atol=tolerance)
        assert cache.frames == cache.kept == 8

    @torch.no_grad()
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
    def test_one_pass_without_a_mask_equals_the_mask_gradients_too(self, dtype, tolerance):
        """Three chunks of unequal weight: attention over pairs that the mask allows, chunk by chunk."""
        chunks, size = 3, 5
        inputs = torch.randn(3, 2, 2, 2 * chunks * size, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
        weight = torch.randn(inputs[0].shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
        mask = wan_causal.teacher_forcing_mask(chunks, 1).repeat_interleave(size, 0).repeat_interleave(size, 1)
        got = []
        for attend in (
            lambda *parts: chunk_attention.teacher_forced_attention(*parts, chunks),
            lambda *parts: torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask),
        ):
            leaves = [part.clone().requires_grad_() for part in inputs]
            with torch.enable_grad():
                out = attend(*leaves)
                (out * weight).sum().backward()
            got.append((out.detach(), *(leaf.grad for leaf in leaves)))
        for fast, naive in zip(*got, strict=True):
            assert (fast - naive).abs().max() < tolerance

    def test_s8_one_noise_level_for_all_tokens_equals_the_stock_timestep(self, network, condition):
        """The first chunk, from an empty cache, is a stock call of the model."""
        noisy, sigma = clip(3, CHUNK), torch.tensor([0.7, 0.2]).double()
        stock = wan.velocity(network, noisy, sigma, condition)
        causal = wan_causal.velocity(network, noisy, sigma, condition, ChunkCache())
        torch.testing.assert_close(causal, stock, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("policy", [CachePolicy(window=6), CachePolicy(window=6, sink=2)], ids=str)
    @torch.no_grad()
    def test_s8_a_window_of_keys_equals_a_window_of_the_mask_in_the_first_layer(self, condition, policy):
        """Deeper layers differ by design: a cached key keeps what it saw when its chunk was current."""
        network = wan.tiny(num_layers=1).double()
        with Applied() as undo:
            wan_causal.make_causal(network, undo)
            clean, noisy, sigma = clip(2), clip(3), chunk_levels()
            chunks, cache = cached(network, clean, noisy, sigma, condition, ChunkCache(policy))
            wanted = windowed(network, clean, noisy, sigma, condition, policy)
        torch.testing.assert_close(chunks, wanted, rtol=0, atol=1e-10)
        assert cache.kept == policy.window - CHUNK

    @torch.no_grad()
    def test_relative_positions_equal_absolute_ones_while_nothing_is_dropped(self, network, condition):
        clean, noisy, sigma = clip(2), clip(3), chunk_levels()
        absolute, _ = cached(network, clean, noisy, sigma, condition, ChunkCache())
        relative, _ = cached(network, clean, noisy, sigma, condition, ChunkCache(CachePolicy(relative=True)))
        torch.testing.assert_close(relative, absolute, rtol=0, atol=1e-10)

    @torch.no_grad()
    def test_eight_bits_come_near(self, network, condition):
        clean, noisy, sigma = clip(2), clip(3), chunk_levels()
        exact, plain = cached(network, clean, noisy, sigma, condition, ChunkCache())
        rounded, small = cached(network, clean, noisy, sigma, condition, ChunkCache(CachePolicy(codec=Int8())))
        error = (rounded - exact).norm() / exact.norm()
        assert 0 < error < 0.01
        assert small.nbytes < plain.nbytes / 3


class TestWindow:
    @pytest.mark.parametrize(("window", "sink"), [(12, 3), (6, 0), (5, 1), (None, 0)])
    def test_s9_visible_frames_are_the_sink_and_the_last_ones(self, window, sink):
        """Values are frame numbers; every chunk is committed once, however often it was attended to."""
        chunk, cache = 3, ChunkCache(CachePolicy(window=window, sink=sink))
        for number in range(9):
            frames = torch.arange(number * chunk, (number + 1) * chunk, dtype=torch.float32)
            states = frames.repeat_interleave(2)[None, :, None, None]  # two tokens a frame
            for _ in range(3):
                keys, values = cache.attend(0, states, states, chunk)
            end = (number + 1) * chunk
            first = 0 if window is None else max(sink, end - (window - sink))
            wanted = [*range(min(sink, end)), *range(first, end)] if first else [*range(end)]
            assert values[0, ::2, 0, 0].tolist() == wanted and torch.equal(keys, values)
            cache = cache.commit([(states, states)], chunk)
        assert cache.frames == 27

    def test_s9_forks_do_not_meet(self):
        one = torch.ones(1, 2, 1, 1)
        base = ChunkCache().commit([(one, one)], 1)
        left, right = base.commit([(2 * one, one)], 1), base.commit([(3 * one, one)], 1)
        assert base.kept == 1 and left.kept == right.kept == 2
        assert left.attend(0, one, one, 1)[0].flatten().tolist() == [1, 1, 2, 2, 1, 1]
        assert right.attend(0, one, one, 1)[0].flatten().tolist() == [1, 1, 3, 3, 1, 1]
        assert left.reset() == ChunkCache() and left.nbytes == 2 * base.nbytes
        assert left.segments[0] is right.segments[0] is base.segments[0]

    def test_a_part_of_a_chunk_that_stays_frees_the_rest(self):
        """A sink of one frame of a chunk of three: what is dropped is freed, also in the middle of a chunk."""
        cache = ChunkCache(CachePolicy(window=5, sink=1))
        for number in range(3):
            states = torch.arange(3.0).add(3 * number).repeat_interleave(2)[None, :, None, None].clone()
            cache = cache.commit([(states, states)], 3)
        (sink, recent), frame = cache.segments, 2 * 2 * 4
        assert (sink.frames, recent.frames) == (1, 1) and cache.nbytes == 2 * frame
        held = {part.untyped_storage().nbytes() for segment in cache.segments for part in segment.layers[0][0]}
        assert held == {frame // 2}

    def test_a_longer_chunk_than_the_last_sees_fewer_frames(self):
        cache = ChunkCache(CachePolicy(window=6, sink=1))
        for number in range(4):
            states = torch.full((1, 1, 1, 1), float(number))
            cache = cache.commit([(states, states)], 1)
        longer = torch.arange(4.0, 7)[None, :, None, None]
        assert cache.kept == 4 and cache.visible(3) == 3
        assert cache.attend(0, longer, longer, 3)[0].flatten().tolist() == [0, 2, 3, 4, 5, 6]

    @pytest.mark.parametrize(
        ("fields", "told"),
        [
            ({"window": 0}, "count frames"),
            ({"window": 6, "sink": -1}, "count frames"),
            ({"window": 3, "sink": 3}, "no room for a chunk"),
            ({"sink": 2}, "needs a window"),
        ],
    )
    def test_impossible_windows_are_refused(self, fields, told):
        with pytest.raises(ValueError, match=told):
            CachePolicy(**fields)

    def test_a_chunk_larger_than_the_window_is_refused(self, network, condition):
        cache = ChunkCache(CachePolicy(window=4, sink=3))
        with pytest.raises(ValueError, match="chunk of 2 frames and a sink of 3"):
            wan_causal.commit(network, clip(2, 2), condition, cache)


class TestLongVideos:
    def test_beyond_the_rotary_table_is_a_clear_error(self, network, condition):
        with pytest.raises(ValueError, match="16 positions"):
            wan_causal.commit(network, clip(2, 2), condition, ChunkCache(frames=15))

    @torch.no_grad()
    def test_relative_positions_have_no_longest_video_and_hold_constant_memory(self, network, condition):
        cache, sizes = ChunkCache(CachePolicy(window=6, sink=1, relative=True)), []
        for number in range(12):  # 24 frames, the table has 16
            cache = wan_causal.commit(network, clip(number, 2), condition, cache)
            sizes.append(cache.nbytes)
        assert cache.frames == 24 and cache.kept == 4
        assert len(set(sizes[2:])) == 1

    @torch.no_grad()
    def test_a_prompt_switch_rebuilds_what_the_window_sees(self, network, condition):
        chunks = [clip(number, 2) for number in range(4)]
        other = condition.flip(1) * 2
        cache = ChunkCache(CachePolicy(window=6))
        for chunk in chunks:
            cache = wan_causal.commit(network, chunk, condition, cache)
        seen = [(4, chunks[2]), (6, chunks[3])]
        again = wan_causal.recache(network, seen, condition, cache)
        switched = wan_causal.recache(network, seen, other, cache)
        assert again.frames == switched.frames == cache.frames == 8
        assert again.kept == switched.kept == 4
        one, two = (made.segments[0].layers[1][0][0] for made in (again, switched))
        assert not torch.allclose(one, two)


class TestTraining:
    def test_s10_recomputed_activations_give_the_same_gradients(self, network, condition):
        """Also when later chunks were committed before backward."""
        clean, noisy = clip(2), clip(3)
        found = []
        for checkpointing in (False, True):
            network.train()
            (network.enable_gradient_checkpointing if checkpointing else network.disable_gradient_checkpointing)()
            network.zero_grad()
            cache, losses = ChunkCache(CachePolicy(window=4)), []
            for first in range(0, 8, CHUNK):
                part, sigma = slice(first, first + CHUNK), torch.full((2,), 0.6).double()
                losses.append(wan_causal.velocity(network, noisy[:, :, part], sigma, condition, cache).square().mean())
                cache = wan_causal.commit(network, clean[:, :, part], condition, cache)
            torch.stack(losses).sum().backward()
            found.append([weight.grad.clone() for weight in network.parameters() if weight.grad is not None])
        for plain, recomputed in zip(*found, strict=True):
            torch.testing.assert_close(recomputed, plain, rtol=0, atol=1e-12)

    def test_s11_no_gradient_crosses_chunks_though_the_cache_counts(self, network, condition):
        first, second, sigma = clip(2, 2).requires_grad_(), clip(3, 2), torch.full((2,), 0.6).double()
        cache = wan_causal.commit(network, first, condition, ChunkCache())
        out = wan_causal.velocity(network, second, sigma, condition, cache)
        out.square().mean().backward()
        assert first.grad is None
        moved = wan_causal.commit(network, first.detach() + 0.1, condition, ChunkCache())
        with torch.no_grad():
            assert not torch.allclose(wan_causal.velocity(network, second, sigma, condition, moved), out)


class TestTheModel:
    @torch.no_grad()
    def test_it_is_the_stock_model_outside_of_a_call_and_after_removing(self, condition):
        made = wan.tiny().double()
        noisy, sigma = clip(3), torch.tensor([0.7, 0.2]).double()
        before, names = wan.velocity(made, noisy, sigma, condition), list(made.attn_processors.values())
        with Applied() as undo:
            wan_causal.make_causal(made, undo)
            assert torch.equal(wan.velocity(made, noisy, sigma, condition), before)
        assert torch.equal(wan.velocity(made, noisy, sigma, condition), before)
        assert list(made.attn_processors.values()) == names and "forward" not in vars(made.rope)

    @torch.no_grad()
    def test_videos_in_threads_do_not_meet(self, network, condition):
        def video(seed):
            return cached(network, clip(seed), clip(seed + 9), chunk_levels(), condition, ChunkCache())[0]

        alone = [video(seed) for seed in range(4)]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(video, range(4)))
        assert all(torch.equal(one, two) for one, two in zip(alone, together, strict=True))

    def test_another_model_is_refused(self):
        with pytest.raises(UnsupportedModelError, match="Linear is no WanTransformer3DModel"):
            wan_causal.check(torch.nn.Linear(2, 2))
        with pytest.raises(UnsupportedModelError, match="image conditions"):
            wan_causal.check(wan.tiny(added_kv_proj_dim=8, image_dim=8))

    def test_frames_that_do_not_divide_into_chunks_are_refused(self, network, condition):
        with pytest.raises(ValueError, match="8 frames do not divide into chunks of 3"):
            wan_causal.teacher_forced(network, clip(2), clip(3), chunk_levels(), condition, 3)

    @pytest.mark.parametrize(
        ("name", "gigabytes"), [("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 6.04), ("Wan-AI/Wan2.1-T2V-14B-Diffusers", 26.84)]
    )
    def test_bytes_of_a_full_cache_of_the_real_models(self, name, gigabytes):
        """21 latent frames at 480p in bfloat16: 30 layers x 2 x 32760 x 1536 x 2 bytes (card, section 6)."""
        architecture = wan.KNOWN[name]
        size = wan_causal.cache_bytes(architecture, architecture.latent(81, 480, 832), frames=21)
        assert size == pytest.approx(gigabytes * 1e9, rel=1e-3)
