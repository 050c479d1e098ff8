"""Salt and Self Forcing on tiny causal students: draws, losses, when they apply, and what they train."""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections import Counter

import pytest
import torch
from fewstep import families
from fewstep.applied import Applied
from fewstep.families import wan
from fewstep.families.chunk_cache import Segment
from fewstep.testing.objective import ObjectiveCase, ObjectiveSuite
from fewstep.train.chunk_noise import FreshNoise, reference_transition
from fewstep.train.chunk_reference import reference_roll
from fewstep.train.chunk_rollout import ChunkPlan
from fewstep.train.objective import UpdateSchedule
from fewstep.train.roles import Role, Roles
from fewstep.train.staged import Staged
from fewstep_salt.alignment import Features, make_alignment
from fewstep_salt.causal_losses import ChunkAlignmentLoss
from fewstep_salt.consistency import end_points, semigroup_loss
from fewstep_salt.losses import SemigroupLoss
from fewstep_salt.objective import SaltObjective
from fewstep_salt.steps import L2, L4, L8, StepMix

PLAN = ChunkPlan(chunk=2)
SHAPE = (3, 6, 4, 4)


def only(grid) -> StepMix:
    return StepMix((grid,), (1.0,))


def aligned(kind="trd", **fields) -> ChunkAlignmentLoss:
    distance = make_alignment(kind, features=Features(block=1), margin=0.0)
    return ChunkAlignmentLoss(**{"alignment": distance, "start": 0, **fields})


ARMS = {
    "self-forcing": {"mix": only(L4)},
    "self-forcing-8": {"mix": only(L8)},
    "semigroup": {"mix": only(L8), "extra": {"semigroup": SemigroupLoss()}},
    "mixed": {},
    "salt": {"extra": {"semigroup": SemigroupLoss(), "alignment": aligned()}},
}
"""Settings of the baselines and of Salt."""


@pytest.fixture
def roles() -> Roles:
    """A causal student, and a bidirectional critic and teacher, moved apart."""
    networks = {name: copy.deepcopy(wan.tiny()) for name in ("student", "critic", "teacher")}
    torch.manual_seed(1)
    for weight in (*networks["student"].parameters(), *networks["critic"].parameters()):
        weight.data += 0.05 * torch.randn_like(weight)
    families.causal(networks["student"]).make_causal(networks["student"], Applied())
    networks["teacher"].requires_grad_(False)
    return Roles(**{name: Role(network) for name, network in networks.items()})


@pytest.fixture
def batch(make_batch):
    return lambda seed, **fields: make_batch(2, seed=seed, **{"shape": SHAPE, **fields})


def objective(roles, **fields) -> SaltObjective:
    return SaltObjective(roles=roles, plan=PLAN, **fields)


def seed_of(made, batch, grid, exit) -> int:
    """A seed whose draw is this list and exit step."""
    for seed in range(300):
        if made.draw(batch(seed)) == (grid, exit):
            return seed
    raise AssertionError("no seed")


class TestArms(ObjectiveSuite):
    @pytest.fixture(params=["self-forcing", "salt"])
    def case(self, request, roles, batch):
        two_chunks = (3, 4, 4, 4)
        made = objective(roles, **ARMS[request.param])
        return ObjectiveCase(objective=made, batch=lambda seed: batch(seed, shape=two_chunks))


def test_a_step_is_one_critic_update_and_every_fifth_updates_the_student_before_it(roles):
    phases = [objective(roles).phases(step) for step in range(6)]
    assert phases == [("student", "critic"), *4 * [("critic",)], ("student", "critic")]


def test_s6_lists_and_exits_are_those_of_the_mixture_and_shared_by_micro_batches(roles, batch):
    """Frequencies .4, .4 and .2, exits uniform."""
    made = objective(roles)
    drawn = [made.draw(batch(seed)) for seed in range(1000)]
    counts = Counter(len(grid) for grid, _ in drawn)
    expected = {8: 400, 4: 400, 2: 200}
    assert sum((counts[steps] - many) ** 2 / many for steps, many in expected.items()) < 13.8  # 0.999, 2 degrees
    exits = Counter(exit for grid, exit in drawn if grid == L8)
    assert sum((exits[exit] - counts[8] / 8) ** 2 / (counts[8] / 8) for exit in range(8)) < 24.3  # 0.999, 7 degrees
    assert made.draw(batch(0, micro=1)) == drawn[0]
    own = objective(roles, exit_index="micro-batch")
    assert len({own.draw(batch(0, micro=micro)) for micro in range(8)}) > 1


def test_extra_losses_apply_where_they_should_and_are_counted(roles, batch):
    """Self-consistency: the eight-step list, but not at its last step. Alignment: two steps, but not at the first."""
    made = objective(roles, **ARMS["salt"])
    for grid, exit in ((L8, 3), (L8, 7), (L4, 2), (L2, 0), (L2, 1)):
        one = batch(seed_of(made, batch, grid, exit))
        parts = made.losses("student", one, 0)
        active = {"semigroup": (grid, exit) == (L8, 3), "alignment": (grid, exit) == (L2, 1)}
        assert list(parts) == ["dmd", "semigroup", "alignment"] and one.metrics["steps"] == len(grid)
        for name, wanted in active.items():
            assert one.metrics[f"{name}_active"] == wanted, (grid, exit, name)
            assert (parts[name].item() > 0) == wanted and parts[name].requires_grad == wanted


def test_alignment_waits_for_its_warm_up(roles, batch):
    made = objective(roles, extra={"alignment": aligned(start=700)})
    seed = seed_of(made, batch, L2, 1)
    for step, active in ((699, False), (700, True)):
        one = batch(seed)
        made.losses("student", one, step)
        assert one.metrics["alignment_active"] == active


def test_the_semigroup_loss_is_that_of_each_chunk_with_its_own_cache(roles, batch):
    made = objective(roles, **ARMS["semigroup"])
    seed = seed_of(made, batch, L8, 3)
    loss = made.losses("student", batch(seed), 0)["semigroup"]
    one = batch(seed)
    sample = made.rollout(one, grad=True)
    triple = SemigroupLoss().draw(L8, 3, one.shared)
    ends = []
    for chunk in sample.chunks:

        def velocity(noisy, level, chunk=chunk):
            return made.causal.velocity(noisy, level, one.cond, chunk.cache)

        ends.append(end_points(chunk.noisy, chunk.velocity, triple, velocity))
    expected = semigroup_loss(*(torch.cat(parts, 2) for parts in zip(*ends, strict=True)), triple)
    torch.testing.assert_close(loss, 0.2 * expected)


def cached_chunks() -> int:
    """Chunks whose keys and values are alive."""
    gc.collect()
    return sum(type(one) is Segment for one in gc.get_objects())


def test_the_critic_and_the_teacher_are_asked_when_caches_are_free(roles, batch):
    before, found = cached_chunks(), []

    def distance(teacher, x, reference, batch, **_):
        found.append(cached_chunks() - before)
        return (x - reference).square().mean()

    made = objective(roles, extra={"alignment": aligned(alignment=distance, share_exit_input=True)})
    one = batch(seed_of(made, batch, L2, 1))
    made.losses("student", one, 0)
    assert found == [2], "two chunks of the sample, which its backward pass needs"
    del one
    other = batch(0)
    made.losses("critic", other, 0)
    assert cached_chunks() == before and other.rollouts


@pytest.mark.parametrize("kind", ["trd", "mse"])
def test_s12_the_same_list_with_aligned_noise_has_no_distance(roles, batch, kind):
    made = objective(roles, mix=only(L4))
    one = batch(2)
    sample = made.rollout(one, grad=True)
    assert isinstance(sample.transition, FreshNoise)
    reference = reference_roll(sample, L4, reference_transition("aligned-b", sample.transition))
    assert torch.equal(reference.x, sample.x)
    distance = aligned(kind).alignment(roles.teacher, sample.x, reference.x, one)
    assert distance.item() == pytest.approx(0.0, abs=1e-6)


def test_alignment_reaches_the_student_through_the_teacher(roles, batch):
    made = objective(roles, extra={"alignment": aligned()})
    with roles.updating("student"):
        made.losses("student", batch(seed_of(made, batch, L2, 1)), 0)["alignment"].backward()
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in roles.student.parameters())
    assert all(weight.grad is None for name in ("critic", "teacher") for weight in roles[name].parameters())


def test_an_extra_loss_that_fails_stops_the_step(roles, batch):
    def broken(*_, **__):
        raise RuntimeError("no features")

    made = objective(roles, extra={"alignment": aligned(alignment=broken)})
    with pytest.raises(RuntimeError, match="no features"):
        made.losses("student", batch(seed_of(made, batch, L2, 1)), 0)


def test_pairs_of_lists_are_settings(roles):
    loss = aligned(pairs=((2, 4), (4, 8)))
    assert loss.reference_grid(L4, 1, 0) == L8 and loss.reference_grid(L8, 1, 0) is None
    assert aligned().reference_grid(L4, 1, 0) is None
    with pytest.raises(ValueError, match="4 steps cannot be aligned with 8: there are lists of"):
        aligned(pairs=((4, 8),), mix=StepMix((L4, L2), (0.5, 0.5)))
    aligned(pairs=((4, 8),), mix=only(L2))  # no list of four steps: nothing to align


class TestLongVideos:
    def test_only_the_end_is_trained_and_begins_with_an_image(self, roles, batch):
        seen = []

        def image(latents):
            seen.append(latents)
            return torch.full_like(latents[:, :, :1], 7.0)

        made = objective(roles, frames=10, image_latent=image, mix=only(L2))
        one = batch(0)
        sample = made.rollout(one, grad=True)
        assert sample.x.shape[2] == 6 and len(sample.chunks) == 5 and sample.first_trained == 4
        assert (sample.x[:, :, 0] == 7).all() and seen[0].shape[2] == 5 and not seen[0].requires_grad
        loss = made.losses("student", batch(0), 0)["dmd"]
        loss.backward()
        assert torch.isfinite(loss) and any(weight.grad is not None for weight in roles.student.parameters())

    def test_the_given_chunk_is_not_moved(self, roles, batch):
        made = objective(roles, mix=only(L2))
        x = made.rollout(batch(0), grad=False).x.requires_grad_()
        made.matching_loss(x, batch(0), given=2).backward()
        assert (x.grad[:, :, :2] == 0).all() and x.grad[:, :, 2:].abs().sum() > 0

    @pytest.mark.parametrize("kind", ["trd", "mse"])
    def test_s12_the_image_and_the_given_chunk_are_no_distance(self, roles, batch, kind):
        """The same list with aligned noise: nothing is left, though the sample's first frame is another."""
        long = {"frames": 10, "image_latent": lambda latents: torch.full_like(latents[:, :, :1], 7.0)}
        loss = aligned(kind, noise="aligned-b", scale=1.0)
        object.__setattr__(loss, "pairs", ((2, 2),))  # no setting: a list has no denser one in itself
        made = objective(roles, mix=only(L2), **long)
        one = batch(seed_of(made, batch, L2, 1))
        sample = made.rollout(one, grad=True)
        assert loss(roles, sample, one, 0).item() == pytest.approx(0.0, abs=1e-6)
        moved = dataclasses.replace(sample, x=torch.cat([sample.x[:, :, :1], sample.x[:, :, 1:] + 0.5], 2))
        assert loss(roles, moved, batch(3), 0).item() > 1e-4

    @pytest.mark.parametrize("kind", ["trd", "mse"])
    def test_alignment_does_not_move_the_given_chunk(self, roles, batch, kind):
        x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_()
        aligned(kind).alignment(roles.teacher, x, 0.5 * x.detach(), batch(0), given=2).backward()
        assert (x.grad[:, :, :2] == 0).all() and x.grad[:, :, 2:].abs().sum() > 0

    def test_the_semigroup_loss_leaves_the_given_chunk_out(self, roles, batch):
        image = {"image_latent": lambda latents: latents[:, :, -1:]}
        made = objective(roles, frames=10, **image, **ARMS["semigroup"])
        seed = seed_of(made, batch, L8, 3)
        one = batch(seed)
        sample = made.rollout(one, grad=True)
        loss = SemigroupLoss()(roles, sample, one, 0)
        one = batch(seed)
        sample = made.rollout(one, grad=True)
        triple = SemigroupLoss().draw(L8, 3, one.shared)
        direct, composed = end_points(sample.noisy, sample.velocity, triple, sample.again)
        expected = 0.2 * semigroup_loss(direct[:, :, 2:], composed[:, :, 2:], triple)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)

    def test_without_an_image_latent_they_are_refused(self, roles):
        with pytest.raises(ValueError, match="need an image_latent"):
            objective(roles, frames=10)

    def test_an_image_latent_is_the_last_frame_encoded_alone(self):
        pipe = wan.tiny_pipeline()
        latents = torch.randn(1, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        image = wan.image_latent(pipe, latents)
        pixels = wan.decode(pipe, latents)[:, -1:].transpose(1, 2)
        with torch.no_grad():
            wanted = pipe.vae.encode(2 * pixels - 1).latent_dist.mode()
        assert image.shape == (1, 3, 1, 4, 4)
        torch.testing.assert_close(wan.denormalised(pipe.vae, image), wanted)


def test_stages_follow_each_other_on_the_same_roles(roles, batch):
    four, two = (objective(roles, mix=only(grid)) for grid in (L4, L2))
    staged = Staged({0: four, 3: two})
    assert [staged.at(step) is two for step in (0, 2, 3, 9)] == [False, False, True, True]
    one = batch(0)
    staged.losses("critic", one, 5)
    assert one.metrics["steps"] == 2 and staged.phases(5) == ("student", "critic")
    with pytest.raises(ValueError, match="begins at step 0"):
        Staged({3: two})


def test_steps_that_count_the_student(roles):
    assert objective(roles, schedule=UpdateSchedule(5)).phases(1) == ("student", *5 * ("critic",))
