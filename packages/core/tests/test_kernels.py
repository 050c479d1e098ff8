"""The unit-score kernel against the suite, hand-made values and a slow loop; and the checks against broken kernels."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from fewstep.cards import import_target
from fewstep.kernels import Case, Kernel
from fewstep.kernels.ahead import compiled_usage
from fewstep.kernels.check import MismatchError, difference, nan_filled, report
from fewstep.kernels.unit_score import KERNEL, SCORES, unit_score
from fewstep.testing.kernel import KernelSuite


class TestUnitScore(KernelSuite):
    @pytest.fixture
    def kernel(self):
        return KERNEL


def hand_made():
    """Card slim-infer, test 7.3: two heads on one KV head, units of two tokens, blocks of four."""
    keys = torch.tensor([[1, 0], [3, 0], [0, 1], [0, 3], [1, 2], [1, 2], [-4, 0], [-4, 0]]).float()
    window = torch.tensor([[[1, 0], [1, 0]], [[0, 0], [0, 2]]]).float()
    return window.mean(1), keys[None]


@pytest.mark.parametrize("backend", ["naive", "cpu"])
@pytest.mark.parametrize(
    ("score", "unit", "expected"),
    [("dot", 2, [1.0, 1.5]), ("abs_dot", 2, [1.0, 2.0]), ("dot", 4, [1.0, -0.25])],
)
def test_hand_made_scores(backend, score, unit, expected):
    query, keys = hand_made()
    found = unit_score(query, keys, block=4, unit=unit, score=score, backend=backend)
    assert found.tolist() == expected


def slow_scores(query, keys, block, unit, score):
    """The card's formula in loops over Python floats."""
    query, keys = query.double().tolist(), keys.double().tolist()
    heads, groups, tokens, dim = len(query), len(keys), len(keys[0]), len(query[0])
    starts = range(0, tokens, unit)
    table = []
    for head in range(heads):
        group = keys[head // (heads // groups)]
        dots = []
        for start in starts:
            run = group[start : start + unit]
            mean = [sum(key[i] for key in run) / len(run) for i in range(dim)]
            dots.append(sum(q * k for q, k in zip(query[head], mean, strict=True)))
        if score == "abs_dot":
            dots = [abs(dot) for dot in dots]
        if score == "unit_softmax":
            weights = [math.exp(dot / math.sqrt(dim)) for dot in dots]
            dots = [weight / sum(weights) for weight in weights]
        table.append(dots)
    best = [-math.inf] * -(-tokens // block)
    for u, start in enumerate(starts):
        best[start // block] = max(best[start // block], sum(row[u] for row in table) / heads)
    return best


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("backend", ["naive", "cpu"])
def test_equals_a_slow_loop(backend, score):
    generator = torch.Generator().manual_seed(1)
    sizes = product((1, 2, 4), ((1, 8, 4), (17, 8, 4), (23, 12, 3), (16, 4, 4), (5, 1, 1), (40, 16, 2)))
    for ratio, (tokens, block, unit) in sizes:
        keys = torch.randn(2, tokens, 6, generator=generator)
        query = torch.randn(2 * ratio, 6, generator=generator)
        found = unit_score(query, keys, block=block, unit=unit, score=score, backend=backend)
        expected = torch.tensor(slow_scores(query, keys, block, unit, score))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("layout", ["buffer", "token-major", "strided-dim"])
def test_layout_of_keys_does_not_matter(layout, score):
    query, keys = torch.randn(4, 16), torch.randn(2, 45, 16)
    views = {
        "buffer": torch.cat([keys, torch.full((2, 9, 16), torch.nan)], 1)[:, :45],
        "token-major": keys.transpose(0, 1).contiguous().transpose(0, 1),
        "strided-dim": keys.transpose(1, 2).contiguous().transpose(1, 2),
    }
    expected = unit_score(query, keys, block=16, unit=4, score=score, backend="naive")
    torch.testing.assert_close(unit_score(query, views[layout], block=16, unit=4, score=score), expected)


def test_scores_are_fp32_and_carry_no_gradient():
    query, keys = torch.randn(4, 16, requires_grad=True), torch.randn(2, 45, 16, dtype=torch.bfloat16)
    for backend in ("naive", "cpu"):
        found = unit_score(query, keys, block=16, unit=4, backend=backend)
        assert found.dtype == torch.float32
        assert not found.requires_grad


def test_says_which_backend_it_takes():
    assert KERNEL.chosen_backend("cpu") == "cpu"
    assert KERNEL.chosen_backend(torch.device("meta")) == "naive"
    assert replace(KERNEL, fast={"triton": "nowhere:double"}).chosen_backend("cpu") == "naive"


def test_float64_and_recorded_gradients_take_a_backend_that_has_them():
    assert KERNEL.exact_backend(torch.ones(1)) == "cpu"
    assert KERNEL.exact_backend(torch.ones(1, dtype=torch.float64)) == "naive"
    assert KERNEL.trainable_backend(torch.ones(1), torch.ones(1, requires_grad=True)) == "cpu"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": 10}, "block must be a multiple of unit"),
        ({"unit": 0}, "block must be a multiple of unit"),
        ({"score": "cosine"}, "supported: dot, abs_dot, unit_softmax"),
        ({"backend": "cuda"}, "it has: naive, cpu, triton"),
        ({"keys": torch.ones(2, 0, 6)}, "keys hold no tokens"),
        ({"keys": torch.ones(3, 9, 6)}, "h a multiple of g"),
        ({"keys": torch.ones(2, 9, 5)}, "query must be"),
    ],
)
def test_wrong_input_is_named(change, message):
    arguments = {"query": torch.ones(4, 6), "keys": torch.ones(2, 9, 6), "block": 8, "unit": 4} | change
    with pytest.raises(ValueError, match=message):
        unit_score(**arguments)


def test_triton_refuses_cpu_tensors_outside_its_interpreter():
    pytest.importorskip("triton")
    query, keys = hand_made()
    with pytest.raises(ValueError, match="found cpu"):
        unit_score(query, keys, block=4, unit=2, backend="triton")


def doubled(x):
    return 2 * x


def wrong(x):
    return 2.01 * x


def half_written(x):
    out = torch.empty_like(x)
    out[1:] = 2 * x[1:]
    return out


def undecided(x):
    return 2 * x * (1 + torch.rand(x.shape) * 1e-6)


def narrowed(x):
    return (2 * x).half()


DOUBLE = Kernel(
    name="double",
    target="nowhere:DOUBLE",
    naive=doubled,
    fast={"cpu": "nowhere:double", "triton": "nowhere:double"},
    cases=lambda: [Case("ramp", (torch.linspace(0.3, 1, 1001),), {})],
    signatures="nowhere:signatures",
)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (wrong, "error 5.0e-03 above 1e-05"),
        (half_written, "unwritten"),
        (undecided, "second call"),
        (narrowed, "torch.float16, not torch.float32"),
    ],
)
def test_difference_finds_a_broken_backend(function, message):
    (case,) = DOUBLE.cases()
    assert difference(DOUBLE, doubled, case) == 0
    with pytest.raises(MismatchError, match=message):
        difference(DOUBLE, function, case)


def test_nan_filling_ends():
    before = torch.are_deterministic_algorithms_enabled()
    with nan_filled():
        assert torch.empty(3).isnan().all()
    assert torch.are_deterministic_algorithms_enabled() is before


def test_report_names_what_failed():
    rows = report([DOUBLE], check=True, targets=[])
    assert [row["what"] for row in rows] == ["cpu", "triton (interpreter)"]
    assert not rows[0]["ok"]
    assert "No module named 'nowhere'" in rows[0]["detail"]


def test_report_has_a_row_per_backend_and_target():
    plain = replace(DOUBLE, fast={}, signatures=None)
    (row,) = report([plain], check=True, targets=["sm_90"])
    assert row == {"kernel": "double", "what": "sm_90", "ok": True, "detail": "has no triton version", "seconds": 0.0}


def test_unknown_target_lists_the_supported_ones():
    with pytest.raises(ValueError, match="'sm_70'; supported: sm_80, sm_90, sm_120, gfx942"):
        report([KERNEL], check=False, targets=["sm_70"])


@pytest.mark.parametrize(("target", "units"), [("sm_90", 8), ("gfx942", 32)])
def test_spills_are_seen(target, units):
    pytest.importorskip("triton")
    signature = next(s for s in import_target(KERNEL.signatures)() if s.name == "dots-d80-unit8-fp32")
    greedy = replace(signature, constants={**signature.constants, "U": units}, warps=1)
    assert compiled_usage(greedy, target)["spilled"] > 0


def both(x):
    return 2 * x, 3 * x


@pytest.mark.parametrize(
    ("function", "message"),
    [(lambda x: (2 * x, wrong(x)), "error"), (lambda x: (2 * x,), "1 outputs, not 2")],
    ids=["second-output", "fewer-outputs"],
)
def test_every_output_is_compared(function, message):
    pair = replace(DOUBLE, naive=both)
    (case,) = pair.cases()
    assert difference(pair, both, case) == 0
    with pytest.raises(MismatchError, match=message):
        difference(pair, function, case)
