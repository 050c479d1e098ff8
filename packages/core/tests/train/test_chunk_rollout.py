"""Rollouts of a causal student: gradients chunk by chunk, their memory, step lists, noise, and reference rollouts."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from fewstep import UnsupportedModelError, flow
from fewstep.applied import Applied
from fewstep.families import wan, wan_causal
from fewstep.families.chunk_cache import CachePolicy, ChunkCache, Segment
from fewstep.flow import StepGrid
from fewstep.train import adapters
from fewstep.train.chunk_noise import FreshNoise, reference_transition
from fewstep.train.chunk_reference import reference_roll
from fewstep.train.chunk_rollout import CausalStudent, ChunkPlan, roll
from fewstep.train.roles import Role, lora_roles
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

L8 = StepGrid((1000, 875, 750, 625, 500, 375, 250, 125))
L4, L2 = StepGrid(), StepGrid((1000, 500))
PLAN = ChunkPlan(chunk=2)


@pytest.fixture(params=["full", "lora"])
def student(request):
    """A causal tiny Wan in float64, with weights of its own or as an adapter."""
    network = wan.tiny().double()
    with Applied() as undo:
        wan_causal.make_causal(network, undo)
        role = Role(network.requires_grad_(True))
        if request.param == "lora":
            role = lora_roles(network, rank=2, alpha=4.0, targets=("to_q", "to_v", "ffn.net.2")).student
            for weight in role.parameters():
                weight.data += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        yield CausalStudent(role)


def noise(seed: int, frames: int = 6) -> torch.Tensor:
    return torch.randn(2, 3, frames, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


COND = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def fresh(eta: float = 1.0, seed: int = 3) -> FreshNoise:
    return FreshNoise(eta, torch.Generator().manual_seed(seed))


def made(student, *, plan=PLAN, grid=L4, exit=2, transition=None, grad=True, frames=6):
    return roll(student, plan, grid, COND, noise(5, frames), exit, transition or fresh(), grad=grad)


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors that are made within and alive at one time, forward and backward."""

    def __init__(self):
        super().__init__()
        self.known: dict[int, weakref.ref] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf.untyped_storage(), given)
        self.most = max(self.most, self.now)
        return out

    def add(self, storage, given):
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or key in given:  # a view
            return

        def gone(_):
            self.now -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, gone)
        self.now += size


def gradients(student) -> list[torch.Tensor]:
    found = [weight.grad.clone() for weight in student.role.parameters()]
    student.role.network.zero_grad()
    return found


class TestGradients:
    @pytest.mark.parametrize("exit", [0, 3])
    def test_s10_recomputing_each_chunk_gives_the_same_bits(self, student, exit):
        """Later chunks were committed before the backward pass, and the window has dropped the first by then."""
        found = {}
        for again in (True, False):
            plan = ChunkPlan(chunk=2, policy=CachePolicy(window=4), recompute=again)
            x = made(student, plan=plan, exit=exit).x
            x.square().mean().backward()
            found[again] = (x.detach(), *gradients(student))
        assert all(torch.equal(one, other) for one, other in zip(found[True], found[False], strict=True))
        assert any(gradient.abs().sum() > 0 for gradient in found[True][1:])

    def test_s10_blocks_recomputed_within_chunks_too(self, student):
        made(student).x.square().mean().backward()
        plain = gradients(student)
        network = student.role.network.train()
        network.enable_gradient_checkpointing(adapters.checkpointed(network))
        made(student).x.square().mean().backward()
        for one, other in zip(gradients(student), plain, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)

    def test_each_chunk_has_the_gradient_of_its_own_forward(self, student):
        sample = made(student)
        sample.x.square().sum().backward()
        together = gradients(student)
        for chunk in sample.chunks:
            velocity = student.velocity(chunk.noisy, chunk.sigma, COND, chunk.cache)
            assert torch.equal(velocity, chunk.velocity)
            flow.x0_from_velocity(chunk.noisy, velocity, chunk.sigma).square().sum().backward()
        for one, other in zip(together, gradients(student), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)  # adapters are float32

    def test_s11_no_gradient_crosses_chunks_though_the_cache_counts(self, student):
        sample = made(student)
        last = sample.chunks[-1]
        last.velocity.square().sum().backward()
        alone = gradients(student)
        student.velocity(last.noisy, last.sigma, COND, last.cache).square().sum().backward()
        assert all(torch.equal(one, other) for one, other in zip(alone, gradients(student), strict=True))
        assert all(not tensor.requires_grad for chunk in sample.chunks for tensor in chunk.cache.tensors())
        moved = student.commit(sample.chunks[0].x0 + 0.1, COND, ChunkCache())
        with torch.no_grad():
            second = sample.chunks[1]
            assert not torch.allclose(student.velocity(second.noisy, second.sigma, COND, moved), second.velocity)

    @torch.no_grad()
    def test_the_student_is_asked_again_with_the_caches_of_each_chunk(self, student):
        sample = made(student, plan=ChunkPlan(chunk=2, grad_frames=4))
        assert torch.equal(sample.again(sample.noisy, sample.sigma), sample.velocity)
        with pytest.raises(ValueError, match="longer"):
            sample.again(sample.noisy[:, :, :2], sample.sigma)

    def test_memory_is_that_of_one_chunk(self, student):
        """A step on 16 frames needs that of a step on 4, and of the 12 more keys, values and some latents each."""
        most, held = {}, {}
        for frames, again in ((4, True), (16, False), (16, True)):
            plan = ChunkPlan(chunk=2, policy=CachePolicy(window=4), recompute=again)
            with LiveBytes() as live:
                sample = made(student, plan=plan, frames=frames)
                sample.x.square().mean().backward()
            most[frames, again] = live.most
            held[frames] = sum({id(t): t.nbytes for chunk in sample.chunks for t in chunk.cache.tensors()}.values())
            student.role.network.zero_grad()
        assert most[16, True] < 0.4 * most[16, False]
        assert most[16, True] < most[4, True] + held[16] - held[4] + 12 * noise(5, 12).nbytes

    def test_only_the_last_frames_of_a_long_video_are_trained(self, student):
        sample = made(student, plan=ChunkPlan(chunk=2, grad_frames=4), frames=8)
        assert [chunk.velocity.requires_grad for chunk in sample.chunks] == [False, False, True, True]
        assert sample.x.shape[2] == 4 and [chunk.start for chunk in sample.trained] == [4, 6]
        assert torch.equal(sample.x, made(student, frames=8).x[:, :, 4:])

    def test_caches_live_no_longer_than_someone_may_ask_about_them(self, student):
        def alive() -> int:
            gc.collect()
            return sum(type(one) is Segment for one in gc.get_objects())

        before, plan = alive(), ChunkPlan(chunk=2, policy=CachePolicy(window=4), grad_frames=4)
        long = made(student, plan=plan, frames=12)
        assert [chunk.cache is None for chunk in long.chunks] == [True] * 4 + [False] * 2
        assert alive() - before == 2, "what each of the two trained chunks sees"
        long.x.square().mean().backward()
        del long
        sample = made(student, grad=False)
        assert alive() == before
        with pytest.raises(ValueError, match="without keeping the caches"):
            sample.again(sample.noisy, sample.sigma)


class TestRollout:
    @torch.no_grad()
    def test_it_is_what_a_user_would_see_at_the_last_step(self, student):
        """Chunk by chunk over all steps, then the clean pass: the loop of inference."""
        eta, cache, out = 1.0, ChunkCache(), []
        generator = torch.Generator().manual_seed(3)
        for noisy in noise(5).split(2, 2):
            for sigma, following in zip(levels := L4.sigmas.tolist(), [*levels[1:], 0.0], strict=True):
                velocity = student.velocity(noisy, sigma, COND, cache)
                noisy = flow.transition(noisy, velocity, sigma, following, eta if following else 0.0, generator)
            out.append(noisy)
            cache = student.commit(noisy, COND, cache)
        torch.testing.assert_close(made(student, exit=3).x, torch.cat(out, 2), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("grid", [L8, L4, L2, StepGrid((1000,))], ids=len)
    def test_any_list_and_one_exit_level_for_all_chunks(self, student, grid):
        exit = len(grid) - 1
        sample = made(student, grid=grid, exit=exit, grad=False)
        assert {chunk.sigma for chunk in sample.chunks} == {grid.sigmas[exit].item()}
        assert [(chunk.index, chunk.start) for chunk in sample.chunks] == [(0, 0), (1, 2), (2, 4)]
        assert sample.x.shape == sample.start.shape and not sample.x.requires_grad

    @pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
    def test_half_precision_by_autocast_also_when_recomputed(self):
        network = wan.tiny()
        with Applied() as undo:
            wan_causal.make_causal(network, undo)
            student, found = CausalStudent(Role(network.requires_grad_(True), autocast=torch.bfloat16)), []
            for again in (True, False):
                sample = made(student, plan=ChunkPlan(chunk=2, recompute=again))
                sample.x.square().mean().backward()
                found.append(gradients(student))
        assert {tensor.dtype for tensor in sample.chunks[-1].cache.tensors()} == {torch.bfloat16}
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))

    @pytest.mark.parametrize(
        ("fields", "frames", "told"),
        [
            ({"chunk": 3}, 8, "8 latent frames do not divide into chunks of 3"),
            ({"chunk": 2, "grad_frames": 8}, 6, "8 of 6 latent frames"),
            ({"chunk": 2, "grad_frames": 3}, 6, "3 trained frames do not divide"),
            ({"chunk": 0}, 6, "at least one latent frame"),
            ({"chunk": 4, "policy": CachePolicy(window=3)}, 8, "chunk of 4 frames and a sink of 0 do not fit"),
        ],
    )
    def test_impossible_chunks_are_refused(self, student, fields, frames, told):
        with pytest.raises(ValueError, match=told):
            made(student, plan=ChunkPlan(**fields), frames=frames)

    def test_a_model_that_makes_no_chunks_is_refused(self):
        with pytest.raises(UnsupportedModelError, match="Linear is of no model family"):
            CausalStudent(Role(torch.nn.Linear(2, 2)))


class TestReference:
    @pytest.mark.parametrize("kind", ["aligned-b", "aligned-a"])
    @pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
    def test_s12_the_same_list_with_aligned_noise_is_the_same_bits(self, student, kind, eta):
        transition = fresh(eta)
        sample = made(student, transition=transition)
        before = [tensor.clone() for chunk in sample.chunks for tensor in chunk.cache.tensors()]
        drawn = dict(transition.drawn)
        reference = reference_roll(sample, L4, reference_transition(kind, transition))
        assert torch.equal(reference.x, sample.x) and not reference.x.requires_grad
        after = [tensor for chunk in sample.chunks for tensor in chunk.cache.tensors()]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert drawn.keys() == transition.drawn.keys()

    def test_a_denser_reference_ends_at_the_level_of_the_sample(self, student):
        transition = fresh()
        sample = made(student, grid=L2, exit=1, transition=transition)
        for kind in ("aligned-b", "aligned-a", "independent"):
            reference = reference_roll(sample, L4, reference_transition(kind, transition))
            assert reference.exit == 2 and reference.chunks[0].sigma == sample.chunks[0].sigma
            assert not torch.allclose(reference.x, sample.x)

    def test_noise_of_a_reference(self):
        """From 1 over .9375, which only the reference has, to .8333, which both have."""
        student = fresh()
        x, v, other = noise(1), noise(2), noise(3)
        s, extra, common = L4.sigmas[:3].tolist()
        student(0, x, v, s, common)
        eps = student.drawn[0, common]
        aligned_b, aligned_a, independent = (
            reference_transition(kind, student) for kind in ("aligned-b", "aligned-a", "independent")
        )
        assert torch.equal(aligned_b(0, x, v, s, extra), flow.euler(x, v, s, extra))
        torch.testing.assert_close(aligned_a(0, x, v, s, extra), flow.renoise(x - s * v, eps, extra))
        for aligned in (aligned_a, aligned_b):
            clean = flow.x0_from_velocity(other, v, extra)
            torch.testing.assert_close(aligned(0, other, v, extra, common), flow.renoise(clean, eps, common))
        assert not torch.equal(independent(0, x, v, s, common), student(0, x, v, s, common))
        with pytest.raises(ValueError, match="aligned-b, aligned-a, independent"):
            reference_transition("aligned", student)

    def test_a_shared_input_leaves_the_caches_alone_to_differ(self, student):
        transition = fresh()
        sample = made(student, grid=L2, exit=1, transition=transition)
        aligned = reference_transition("aligned-b", transition)
        reference = reference_roll(sample, L4, aligned, share_exit_input=True)
        assert torch.equal(reference.noisy, sample.noisy)
        (first, *others), (own, *rest) = (made.x.split(2, 2) for made in (reference, sample))
        assert torch.equal(first, own)  # no cache yet
        assert not any(torch.equal(one, other) for one, other in zip(others, rest, strict=True))

    def test_steps_without_the_exit_level_are_refused(self, student):
        transition = fresh()
        sample = made(student, grid=L4, exit=1, transition=transition)
        with pytest.raises(ValueError, match="lack 750"):
            reference_roll(sample, L2, reference_transition("aligned-b", transition))


SHARDED = """
import torch
from fewstep.applied import Applied
from fewstep.families import wan, wan_causal
from fewstep.flow import StepGrid
from fewstep.train import sharding
from fewstep.train.chunk_noise import FreshNoise
from fewstep.train.chunk_rollout import CausalStudent, ChunkPlan, roll
from fewstep.train.parallel import join
from fewstep.train.roles import Role, Roles
world, undo = join(), Applied()
start = torch.randn(4, 3, 6, 4, 4, generator=torch.Generator().manual_seed(0))
cond = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))
def gradients(part, *, shard, blocks):
    network = wan.tiny().train().requires_grad_(True)
    wan_causal.make_causal(network, undo)
    roles = Roles(student=Role(network))
    if blocks:
        sharding.recompute(roles)
    if shard:
        sharding.shard(roles, world, torch.float32)
    student, inputs = CausalStudent(roles.student), (cond[part], start[part])
    sample = roll(student, ChunkPlan(chunk=2), StepGrid(), *inputs, 2, FreshNoise(0.0), grad=True)
    sample.x.square().mean().backward()
    found = [weight.grad for weight in network.parameters()]
    return [gradient.full_tensor() if shard else gradient for gradient in found]
whole = gradients(slice(4), shard=False, blocks=False)
for blocks in (False, True):
    sharded = gradients(slice(2 * world.rank, 2 * world.rank + 2), shard=True, blocks=blocks)
    print(max((one - other).abs().max().item() for one, other in zip(sharded, whole)) < 1e-6)
"""


def test_sharded_networks_recompute_chunks_too(forks):
    """FSDP2 on two ranks, half of the batch on each: the gradient of one process on all of it."""
    ended = forks.ranks(2, code=SHARDED)
    assert [one.said.splitlines()[-2:] for one in ended] == [["True", "True"]] * 2, ended[0].said + ended[1].said
