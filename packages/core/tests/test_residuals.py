"""The kernels of per-sample differences against the suite, autograd in float64 and values by hand."""

import pytest
import torch
from fewstep.kernels import mean_abs_difference as difference_module
from fewstep.kernels import weighted_residuals as residuals_module
from fewstep.kernels.mean_abs_difference import mean_abs_difference
from fewstep.kernels.weighted_residuals import weighted_residuals, with_gradient
from fewstep.testing.kernel import KernelSuite


class TestMeanAbsDifference(KernelSuite):
    @pytest.fixture
    def kernel(self):
        return difference_module.KERNEL


class TestWeightedResiduals(KernelSuite):
    @pytest.fixture
    def kernel(self):
        return residuals_module.KERNEL


def tensors(dtype=torch.float64, shape=(3, 2, 5, 7)):
    """u, first, second and their weights, of either sign."""
    generator = torch.Generator().manual_seed(1)
    latents = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))
    return *latents, torch.tensor([0.02, 0.5, 50.0], dtype=dtype), torch.tensor([-0.1, 0.0, 2.0], dtype=dtype)


def slow_loss(u, first, second, first_weight, second_weight):
    """Mean squares of each sample, and the mean over samples of half their weighted sum, in loops over samples."""
    squares = [[((a - b) ** 2).sum() / a.numel() for a, b in zip(u, other, strict=True)] for other in (first, second)]
    terms = zip(*squares, first_weight, second_weight, strict=True)
    return *map(torch.stack, squares), sum(0.5 * (w * r + v * s) for r, s, w, v in terms) / len(u)


def test_residuals_and_gradient_equal_autograd():
    u, *others = tensors()
    first, second, loss = slow_loss(u.requires_grad_(), *others)
    expected = first, second, *torch.autograd.grad(loss, u)
    residuals = weighted_residuals(u, *others)
    for name, one, other in zip(residuals._fields, residuals, expected, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-12, atol=0, msg=lambda text, name=name: name + text)
        assert not one.requires_grad


def test_mean_abs_difference_by_hand():
    x, y = torch.tensor([[[1.0, 2], [3, 4]], [[0, 0], [0, 0]]]), torch.tensor([[[1.0, 0], [0, 0]], [[-1, 1], [0, 2]]])
    assert mean_abs_difference(x.requires_grad_(), y).tolist() == [2.25, 1.0]
    assert not mean_abs_difference(x, y).requires_grad


def test_half_precision_inputs_are_computed_in_float32():
    half = tensors(torch.bfloat16)
    wide = tuple(tensor.float() for tensor in half)
    pairs = [*zip(weighted_residuals(*half), weighted_residuals(*wide), strict=True)]
    pairs.append((mean_abs_difference(*half[:2]), mean_abs_difference(*wide[:2])))
    assert all(one.dtype == torch.float32 and torch.equal(one, other) for one, other in pairs)


def test_equal_tensors_have_no_residuals_and_no_nan():
    u, *_, first_weight, second_weight = tensors(torch.float32)
    for part in weighted_residuals(u, u, u, first_weight, second_weight):
        assert torch.equal(part, torch.zeros_like(part))
    assert mean_abs_difference(u, u).eq(0).all()


def test_with_gradient_gives_the_value_and_passes_the_gradient_on():
    tensor = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.arange(6.0).view(2, 3)
    (2 * with_gradient(torch.tensor(7.0), gradient, tensor)).backward()
    assert with_gradient(torch.tensor(7.0), gradient, tensor).item() == 7
    assert tensor.grad.dtype == torch.bfloat16 and torch.equal(tensor.grad.float(), 2 * gradient)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": torch.ones(2, 4)}, r"one shape .* found \(2, 3\), \(2, 4\), \(2, 3\)"),
        ({"u": torch.ones(2), "first": torch.ones(2), "second": torch.ones(2)}, "one shape"),
        ({"first_weight": torch.ones(1)}, "one number for each of 2 samples"),
        ({"second_weight": torch.ones(2, 1)}, "one number for each of 2 samples"),
        ({"backend": "cpu"}, "it has: naive, triton"),
    ],
)
def test_wrong_input_of_weighted_residuals_is_named(change, message):
    arguments = {name: torch.ones(2, 3) for name in ("u", "first", "second")}
    arguments |= {"first_weight": torch.ones(2), "second_weight": torch.ones(2)} | change
    with pytest.raises(ValueError, match=message):
        weighted_residuals(**arguments)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((2,), (2,)), ((0, 3), (0, 3))])
def test_wrong_input_of_mean_abs_difference_is_named(shapes):
    with pytest.raises(ValueError, match="one shape"):
        mean_abs_difference(*map(torch.ones, shapes))


def test_triton_refuses_cpu_tensors_outside_its_interpreter():
    pytest.importorskip("triton")
    for call in (
        lambda: weighted_residuals(*tensors(torch.float32), backend="triton"),
        lambda: mean_abs_difference(*tensors(torch.float32)[:2], backend="triton"),
    ):
        with pytest.raises(ValueError, match="found cpu"):
            call()
