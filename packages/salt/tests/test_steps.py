"""Step lists, their mixture and the triples, against the tables of the method card: S5 and S6."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections import Counter

import pytest
import torch
from fewstep.flow import StepGrid
from fewstep.train.parallel import join, leave
from fewstep.train.rollout import draw_exit
from fewstep_salt.steps import L2, L4, L8, StepMix, TripleSampler

LEVELS = {
    "L8": (1000, 972.22, 937.5, 892.86, 833.33, 750, 625, 416.67),
    "L4": (1000, 937.5, 833.33, 625),
    "L2": (1000, 833.33),
}
TRIPLES = {
    0: {937.5: (972.2,), 833.3: (972.2, 937.5, 892.9)},
    1: {833.3: (937.5, 892.9), 625: (937.5, 892.9, 833.3, 750)},
    2: {833.3: (892.9,), 625: (892.9, 833.3, 750)},
    3: {625: (833.3, 750), 0: (833.3, 750, 625, 416.7)},
    4: {625: (750,), 0: (750, 625, 416.7)},
    5: {0: (625, 416.7)},
    6: {0: (416.7,)},
    7: {},
}
"""Middle levels by end, by exit step of L8; all times 1000, as the card rounds them."""


def thousandths(levels) -> tuple[float, ...]:
    return tuple(round(1000 * level, 1) for level in levels)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", LEVELS)
def test_levels_are_those_of_the_card(name):
    grid = {"L8": L8, "L4": L4, "L2": L2}[name]
    assert (1000 * grid.sigmas).tolist() == pytest.approx(LEVELS[name], abs=0.005)


def test_the_dense_list_contains_every_list_of_inference():
    assert set(L2.sigmas.tolist()) < set(L4.sigmas.tolist()) < set(L8.sigmas.tolist())
    assert [StepMix().denser(grid) for grid in (L2, L4, L8)] == [L4, L8, None]


def test_s5_candidates_are_the_table_of_the_card():
    sampler = TripleSampler()
    assert sampler.boundaries == (*L4.sigmas.tolist(), 0.0)
    for exit, expected in TRIPLES.items():
        found = sampler.candidates(exit)
        assert dict(zip(thousandths(found), map(thousandths, found.values()), strict=True)) == expected
    listed = {(exit, end, middle) for exit, ends in TRIPLES.items() for end in ends for middle in ends[end]}
    starts = thousandths(L8.sigmas.tolist())
    assert {(starts.index(s), e, m) for s, m, e in map(thousandths, sampler.triples())} == listed
    assert len(list(sampler.triples())) == len(listed) == 27


def test_s5_ends_are_never_within_one_level_and_levels_stay_exact():
    levels = L8.sigmas.tolist()
    for s, m, e in TripleSampler().triples():
        assert s > m > e and e < levels[levels.index(s) + 1]  # `index` fails for a level that was rounded
        assert m in levels and e in (*levels, 0.0)


def test_s5_ends_are_uniform_and_middles_uniform_given_their_end():
    sampler, generator = TripleSampler(), seeded(0)
    draws = Counter(sampler.draw(1, generator) for _ in range(3000))
    for end, middles in sampler.candidates(1).items():
        counts = [count for triple, count in draws.items() if triple.end == end]
        assert sum(counts) == pytest.approx(1500, abs=110) and len(counts) == len(middles)  # four deviations
        assert counts == pytest.approx([sum(counts) / len(middles)] * len(middles), abs=110)
    assert sampler.draw(7, generator) is None


@pytest.mark.parametrize("fields", [{"segments": 3}, {"segments": 0}, {"nearest": 0}, {"grid": L2}])
def test_steps_that_do_not_divide_are_refused(fields):
    with pytest.raises(ValueError, match="segments"):
        TripleSampler(**fields)


def test_s6_frequencies_are_the_probabilities():
    mix, generator, draws = StepMix(), seeded(1), 4000
    counts = Counter(mix.draw(generator) for _ in range(draws))
    expected = [draws * p for p in mix.probabilities]
    squared = sum((counts[grid] - e) ** 2 / e for grid, e in zip(mix.grids, expected, strict=True))
    assert squared < 13.8  # 0.999 of a chi-square with two degrees of freedom


def test_s6_draws_of_two_phases_are_independent():
    mix, pairs, draws = StepMix(), Counter(), 2000
    for seed in range(draws):
        pairs[mix.draw(seeded(2 * seed)), mix.draw(seeded(2 * seed + 1))] += 1
    chance = dict(zip(mix.grids, mix.probabilities, strict=True))
    expected = {(a, b): draws * chance[a] * chance[b] for a in mix.grids for b in mix.grids}
    assert sum((pairs[pair] - e) ** 2 / e for pair, e in expected.items()) < 26.1  # eight degrees of freedom


def test_micro_batches_may_have_a_list_each():
    mix = StepMix()
    drawn = [mix.draw(seeded(3), number) for number in range(40)]
    assert len(set(drawn)) == 3 and drawn == [mix.draw(seeded(3), number) for number in range(40)]


def drawn_by(rank: int, port: int, said) -> None:
    """Draws of one of two gloo processes, each with generators of its own."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= group | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    world = join()
    generator, draws = seeded(world.rank), []
    for _ in range(20):
        grid = StepMix().draw(generator)
        exit = draw_exit(grid, generator)
        draws.append((grid.raw, exit, TripleSampler().draw(min(exit, 6), generator)))
    said.put((rank, torch.rand(3, generator=generator).tolist(), draws))
    leave()


def test_s6_two_processes_draw_what_the_first_one_draws():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # torch is imported once
    said = context.SimpleQueue()
    processes = [context.Process(target=drawn_by, args=(rank, port, said)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    (_, first_own, first), (_, second_own, second) = sorted(said.get() for _ in range(2))
    assert first_own != second_own and first == second
    generator = seeded(0)
    grid = StepMix().draw(generator)
    assert first[0][:2] == (grid.raw, draw_exit(grid, generator))


@pytest.mark.parametrize(
    "fields", [{"probabilities": (0.5, 0.5)}, {"probabilities": (0.5, 0.5, 0.5)}, {"grids": (), "probabilities": ()}]
)
def test_a_mixture_that_is_none_is_refused(fields):
    with pytest.raises(ValueError, match="must be 1"):
        StepMix(**fields)


def test_a_list_within_none_has_no_denser_one():
    assert StepMix().denser(StepGrid((1000, 600))) is None
