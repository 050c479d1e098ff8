"""The kernel of token relations against the suite, autograd in float64 and values by hand (S7 of Salt's card)."""

from __future__ import annotations

import math

import pytest
import torch
from fewstep.kernels import token_relation as module
from fewstep.kernels.token_relation import token_relation
from fewstep.testing.kernel import KernelSuite
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

BACKENDS = ("naive", "cpu")


class TestTokenRelation(KernelSuite):
    @pytest.fixture
    def kernel(self):
        return module.KERNEL


def features(seed=0, shape=(2, 9, 6), dtype=torch.float64):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_value_and_gradient_equal_autograd():
    tokens, reference = features()
    tokens.requires_grad_()
    own, other = F.normalize(tokens, dim=-1), F.normalize(reference, dim=-1)
    values = torch.stack([((a @ a.T - b @ b.T).abs() - 0.1).relu().mean() for a, b in zip(own, other, strict=True)])
    (gradient,) = torch.autograd.grad(values.sum(), tokens)
    for found, expected in zip(token_relation(tokens, reference, margin=0.1), (values, gradient), strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-15)
        assert not found.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("degrees", [0, 20, 60, 90, 180])
def test_two_tokens_at_an_angle(backend, degrees):
    angle = math.radians(degrees)
    tokens = torch.tensor([[[2.0, 0.0], [3 * math.cos(angle), 3 * math.sin(angle)]]])
    parallel = torch.tensor([[[1.0, 1.0], [5.0, 5.0]]])
    value = token_relation(tokens, parallel, margin=0.1, backend=backend).values.item()
    assert value == pytest.approx(max(0, 1 - math.cos(angle) - 0.1) / 2, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rotation_and_scale_of_tokens_change_nothing(backend):
    tokens, reference = features(dtype=torch.float32)
    turned = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    scales = 0.1 + torch.rand(2, 9, 1, generator=torch.Generator().manual_seed(2))
    plain = token_relation(tokens, reference, margin=0.1, backend=backend)
    moved = token_relation(scales * tokens @ turned, 7 * reference, margin=0.1, backend=backend)
    assert plain.values.min() > 0.05
    torch.testing.assert_close(moved.values, plain.values, rtol=1e-5, atol=0)
    torch.testing.assert_close(scales * moved.gradient, plain.gradient @ turned, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_relations_and_those_within_the_margin_have_no_gradient(backend):
    tokens, reference = features(dtype=torch.float32)
    for other, margin in ((tokens, 0.0), (tokens + 1e-3 * reference, 0.1)):
        found = token_relation(tokens, other, margin=margin, backend=backend)
        assert found.values.eq(0).all() and found.gradient.eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_of_length_zero_is_similar_to_none(backend):
    tokens, reference = features(dtype=torch.float32)
    tokens[0, 3] = 0
    found = token_relation(tokens, reference, margin=0.1, backend=backend)
    assert found.gradient[0, 3].eq(0).all() and found.gradient.isfinite().all() and found.values.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_not_hidden(backend):
    tokens, reference = features(dtype=torch.float32)
    tokens[1, 3, 2] = math.nan
    found = token_relation(tokens, reference, margin=0.1, backend=backend)
    assert found.values.isnan().tolist() == [False, True] and found.gradient[1].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_many_float16_tokens_is_not_rounded_to_zero(backend):
    tokens, reference = features(shape=(1, 400, 64), dtype=torch.float16)
    half = token_relation(tokens, reference, margin=0.1, backend=backend).gradient
    whole = token_relation(tokens.float(), reference.float(), margin=0.1, backend=backend).gradient
    assert whole.abs().max() < torch.finfo(torch.float16).tiny and half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=1e-4, atol=1e-10)


class Largest(TorchDispatchMode):
    """Size of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else (result,)
        self.elements = max([self.elements, *(one.numel() for one in made if isinstance(one, torch.Tensor))])
        return result


def test_no_tensor_on_a_cpu_has_all_pairs_of_tokens():
    tokens, reference = features(shape=(1, 600, 8), dtype=torch.float32)
    sizes = {}
    for backend in BACKENDS:
        with Largest() as largest:
            token_relation(tokens, reference, margin=0.1, backend=backend)
        sizes[backend] = largest.elements
    assert sizes["naive"] == 600**2 and sizes["cpu"] <= 128 * 600


@pytest.mark.parametrize(
    ("shapes", "margin", "message"),
    [
        (((2, 3, 4), (2, 3, 5)), 0.1, r"one shape \[n, s, d\]"),
        (((3, 4), (3, 4)), 0.1, r"one shape \[n, s, d\]"),
        (((0, 3, 4), (0, 3, 4)), 0.1, "not empty"),
        (((2, 3, 4), (2, 3, 4)), -0.1, "0 or more"),
    ],
)
def test_wrong_input_is_named(shapes, margin, message):
    with pytest.raises(ValueError, match=message):
        token_relation(*map(torch.ones, shapes), margin=margin)
