import random
import threading

import pytest
import torch
from fewstep.families.kv_cache import GrowingLayer
from fewstep_slim_infer import SlimInfer
from fewstep_slim_infer.resident import ResidentBlocks
from fewstep_slim_infer.select import Candidates
from fewstep_slim_infer.transfer import ThreadCopier

B, HEADS, DIM = 4, 2, 8
BLOCK_BYTES = B * 2 * HEADS * DIM * 4
"""Bytes of one block's keys and values in one layer."""


class HeldCopier(ThreadCopier):
    """A copier that is as slow as it can be: a copy begins only when somebody waits for it."""

    def start(self, copy):
        go = threading.Event()

        def late():
            go.wait()
            copy()

        wait = super().start(late)
        return lambda: (go.set(), wait())


def filled(layers, tokens, rows=1):
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(layers):
        layer = GrowingLayer()
        layer.update(*torch.randn(2, rows, HEADS, tokens, DIM, generator=generator))
        made.append(layer)
    return made


def resident(layers, slots, overlap=0.9, copier=None, numbers=None):
    """Resident blocks of one row, whose prompt ends with three tokens of a ragged block."""
    numbers = numbers or list(range((layers[0].keys.shape[2] - 3) // B))
    return ResidentBlocks(
        layers,
        [0],
        [Candidates(numbers, torch.randn(HEADS, len(numbers), DIM))],
        blocks=[numbers],
        slots=[slots],
        settings=SlimInfer(block=B, unit=B, overlap=overlap, score="dot", carry=0),
        copier=copier or ThreadCopier(),
    )


def test_the_figure_of_the_paper():
    """Active {1,2,4,5}, wanted {1,3,6,8}: 2, 4, 5 go out and 3, 6, 8 come in, block 1 stays where it is."""
    own = resident(filled(1, 7 * B + 3), 4, numbers=[1, 2, 4, 5, 6, 7, 8])
    own.add(0, 3, torch.zeros(1, 2, HEADS, B, DIM))
    place = own.active[0].index(1)
    own.activate(0, [1, 3, 6, 8])
    assert sorted(own.active[0]) == [1, 3, 6, 8] and own.active[0].index(1) == place


@pytest.mark.parametrize(("gamma", "moved"), [(0.7, 0), (0.9, 1)])
def test_enough_overlap_needs_no_swap(gamma, moved):
    own = resident(filled(1, 5 * B + 3), 4, overlap=gamma, numbers=[1, 3, 6, 7, 8])
    own.activate(0, [1, 3, 6, 8])
    assert own.bytes_moved == moved * BLOCK_BYTES and own.swaps == moved
    assert sorted(own.active[0]) == ([1, 3, 6, 8] if moved else [1, 3, 6, 7])


@pytest.mark.parametrize("copier", [ThreadCopier, HeldCopier])
def test_slots_always_hold_what_a_full_cache_would_give(copier):
    layers, full = filled(3, 12 * B + 3), filled(3, 12 * B + 3)
    own, draw, moved = resident(layers, 4, overlap=1.1, copier=copier()), random.Random(0), 0
    for step in range(20):
        wanted = sorted(draw.sample(range(12), 4))
        moved += len(set(wanted) - set(own.active[0]))
        own.activate(0, wanted)
        assert sorted(own.active[0]) == wanted
        new = torch.full((1, HEADS, 1, DIM), float(step))
        for layer, full_layer in zip(layers, full, strict=True):
            for mine, all_tokens in zip(layer.update(new, -new), full_layer.update(new, -new), strict=True):
                columns = [t for b in own.active[0] for t in range(b * B, b * B + B)]
                columns += range(12 * B, all_tokens.shape[2])
                assert torch.equal(mine, all_tokens[:, :, columns])
    assert own.bytes_moved == moved * BLOCK_BYTES * 3
    assert own.host_bytes == 12 * BLOCK_BYTES * 3


def test_overlap_zero_never_swaps_and_above_one_always_does():
    never, always = (resident(filled(1, 39), 3, overlap=overlap) for overlap in (0, 1.1))
    draw = random.Random(1)
    for _ in range(10):
        wanted = sorted(draw.sample(range(9), 3))
        never.activate(0, wanted)
        always.activate(0, wanted)
        assert never.active[0] == [0, 1, 2] and sorted(always.active[0]) == wanted
    assert never.swaps == never.bytes_moved == 0


def test_a_swap_that_nobody_read_is_finished_before_the_next():
    layers = filled(1, 12 * B + 3)
    own = resident(layers, 4, overlap=1.1, copier=HeldCopier())
    for wanted in ([0, 5, 6, 7], [0, 8, 9, 10], [1, 2, 3, 4]):
        own.activate(0, wanted)
    own.wait(0)
    held = torch.cat([own._host[0][b][0, 0] for b in own.active[0]], dim=1)
    assert torch.equal(layers[0].keys[0, :, : 4 * B], held)


def test_an_error_in_a_copy_reaches_whoever_waits():
    def fail():
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        ThreadCopier().start(fail)()


def test_beams_share_the_host_copies():
    layers = filled(1, 12 * B + 3)
    own = resident(layers, 4)
    before = own.host_bytes
    own.select_rows([0, 0, 0])
    for layer in layers:
        layer.select_rows(torch.tensor([0, 0, 0]))
    own.activate(1, [0, 9, 10, 11])
    own.wait(0)
    assert own.host_bytes == before and own.active[0] == [0, 1, 2, 3]
    assert torch.equal(layers[0].keys[0], layers[0].keys[2]) and not torch.equal(layers[0].keys[0], layers[0].keys[1])
