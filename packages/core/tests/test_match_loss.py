"""The match-loss kernel against the suite, against autograd in float64, and as the gradient of DMD2."""

import pytest
import torch
from fewstep.kernels.match_loss import KERNEL, carry, chosen_backend, match_loss
from fewstep.testing.kernel import KernelSuite


class TestMatchLoss(KernelSuite):
    @pytest.fixture
    def kernel(self):
        return KERNEL


def tensors(dtype=torch.float64, shape=(3, 2, 5, 7)):
    generator = torch.Generator().manual_seed(1)
    x, critic, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))
    return x, critic, teacher, torch.tensor([0.02, 0.5, 0.98], dtype=dtype)


def slow_losses(x, critic, teacher, sigma, weights):
    """The card's section 2.3 in loops over samples: ``n``, ``F`` and ``R`` as Python lists of tensors."""
    normaliser, fisher, residual = [], [], []
    for a, u, t, s in zip(x, critic, teacher, sigma, strict=True):
        n = (a - t).abs().sum() / a.numel()
        w_f, w_n = (1 / (n + 1e-8), 1 / s) if weights == "official" else ((1 - s) ** 2 / s**4, 1.0)
        normaliser.append(n)
        fisher.append(0.5 * w_f * ((u - t) ** 2).sum() / a.numel())
        residual.append(0.5 * w_n * ((a - u) ** 2).sum() / a.numel())
    return normaliser, fisher, residual


@pytest.mark.parametrize("weights", ["official", "paper"])
@pytest.mark.parametrize("lam", [0.0, 0.1])
def test_losses_and_gradient_equal_autograd(lam, weights):
    x, critic, teacher, sigma = tensors()
    critic.requires_grad_()
    normaliser, fisher, residual = slow_losses(x, critic, teacher, sigma, weights)
    loss = sum(f - lam * r for f, r in zip(fisher, residual, strict=True)) / len(x)
    found = match_loss(x, critic, teacher, sigma, lam=lam, weights=weights)
    expected = (*map(torch.stack, (normaliser, fisher, residual)), *torch.autograd.grad(loss, critic))
    for name, one, other in zip(found._fields, found, expected, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-12, atol=0, msg=lambda text, name=name: name + text)
        assert not one.requires_grad


def test_without_residual_it_is_the_gradient_of_dmd2():
    x, critic, teacher, sigma = tensors()
    x.requires_grad_()
    with torch.no_grad():
        step = (critic - teacher) / (x - teacher).abs().mean((1, 2, 3), keepdim=True)
    loss = 0.5 * torch.nn.functional.mse_loss(x, (x - step).detach())
    found = match_loss(x, critic, teacher, sigma)
    carried = carry((found.fisher / found.normaliser).mean(), found.gradient, x)
    torch.testing.assert_close(carried, loss, rtol=1e-7, atol=0)
    torch.testing.assert_close(torch.autograd.grad(carried, x)[0], torch.autograd.grad(loss, x)[0], rtol=1e-7, atol=0)


def test_half_precision_inputs_are_computed_in_float32():
    found = match_loss(*tensors(torch.bfloat16), lam=0.1)
    wide = match_loss(*(tensor.float() for tensor in tensors(torch.bfloat16)), lam=0.1)
    assert all(one.dtype == torch.float32 and torch.equal(one, other) for one, other in zip(found, wide, strict=True))


def test_equal_predictions_have_no_fisher_loss_and_no_nan():
    x, critic, _, sigma = tensors(torch.float32)
    found = match_loss(critic, critic, critic, sigma, lam=0.1)
    assert all(torch.equal(part, torch.zeros_like(part)) for part in found)
    assert match_loss(x, critic, critic, sigma).fisher.eq(0).all()


def test_carry_gives_the_value_and_passes_the_gradient_on():
    tensor = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.arange(6.0).view(2, 3)
    (2 * carry(torch.tensor(7.0), gradient, tensor)).backward()
    assert carry(torch.tensor(7.0), gradient, tensor).item() == 7
    assert tensor.grad.dtype == torch.bfloat16 and torch.equal(tensor.grad.float(), 2 * gradient)


def test_says_which_backend_it_takes():
    assert chosen_backend("cpu") == "naive"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"critic": torch.ones(2, 4)}, r"one shape .* found \(2, 3\), \(2, 4\), \(2, 3\)"),
        ({"x": torch.ones(2), "critic": torch.ones(2), "teacher": torch.ones(2)}, "one shape"),
        ({"sigma": torch.ones(1)}, "one number for each of 2 samples"),
        ({"weights": "dmd"}, "supported: official, paper"),
        ({"backend": "cpu"}, "it has: naive, triton"),
    ],
)
def test_wrong_input_is_named(change, message):
    arguments = {name: torch.ones(2, 3) for name in ("x", "critic", "teacher")} | {"sigma": torch.ones(2)} | change
    with pytest.raises(ValueError, match=message):
        match_loss(**arguments)


def test_triton_refuses_cpu_tensors_outside_its_interpreter():
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="found cpu"):
        match_loss(*tensors(torch.float32), backend="triton")
