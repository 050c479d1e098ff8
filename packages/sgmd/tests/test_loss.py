"""The losses against the closed forms of the method card, in float64: T1, T2, T3, T5, T7 and T8."""

import math

import pytest
import torch
from fewstep import flow
from fewstep_sgmd.loss import critic_loss, figures, match_weights, sid_loss, student_losses
from torch.autograd import grad

F64 = {"dtype": torch.float64}
SIGNS = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], **F64)
"""Four (z, eps) with the first and second moments of a Gaussian: expectations of quadratics over them are exact."""


def gain(v, sigma):
    """``k(v)``, slope of the posterior mean of N(m, v) at noise level `sigma`."""
    a = 1 - sigma
    return a * v / (a * a * v + sigma * sigma)


def posterior(noisy, mean, v, sigma):
    a = 1 - sigma
    return mean + gain(v, sigma) * (noisy - a * mean)


def total(x, u, teacher, sigma, lam=0.1, weights="official"):
    level = torch.as_tensor(sigma, **F64).expand(len(x))
    return sum(student_losses(x, u, teacher, level, lam=lam, weights=weights)[0].values())


def gaussian_step(m, s, mean, v, sigma, lam, weights="paper", samples=SIGNS):
    """The student's loss where generator, critic and teacher are Gaussians in one dimension and tracking is exact."""
    z, eps = samples.T.unsqueeze(2)
    x = m + s * z
    noisy = flow.noise(x, eps, sigma)
    u = posterior(noisy, m.detach(), s.detach() ** 2, sigma)
    return total(x, u, posterior(noisy.detach(), mean, v, sigma), sigma, lam, weights), x, u, noisy


T1 = {"mean": 0.2, "v": 1.5, "sigma": 0.6}


def test_t1_closed_form_gradient():
    m, s = (torch.tensor(value, requires_grad=True, **F64) for value in (0.7, 0.8))
    a, k_f, k_t = 0.4, gain(0.64, 0.6), gain(1.5, 0.6)
    c = a**2 / 0.6**4
    for lam, slope in ((0.0, -0.0390516), (0.1, -0.0252587)):
        found = grad(gaussian_step(m, s, **T1, lam=lam)[0], (m, s))
        exact = (a * k_f * c * (1 - a * k_t) * 0.5, a * k_f * 0.8 * (a * c * (k_f - k_t) + lam * (1 - a * k_f)))
        torch.testing.assert_close(torch.stack(found), torch.tensor(exact, **F64), rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.stack(found), torch.tensor((0.0820197, slope), **F64), rtol=0, atol=5e-8)


def test_t1_the_direction_is_that_of_dmd():
    m, s = (torch.tensor(value, requires_grad=True, **F64) for value in (0.7, 0.8))
    loss, x, u, noisy = gaussian_step(m, s, **T1, lam=0.0)
    gap = (u - posterior(noisy, 0.2, 1.5, 0.6)).detach()
    dmd = torch.stack(grad((gap * x).mean(), (m, s), retain_graph=True))
    torch.testing.assert_close(dmd, torch.tensor((0.3, -0.1428374), **F64), rtol=0, atol=5e-8)
    ratio = torch.stack(grad(loss, (m, s))) / dmd
    torch.testing.assert_close(ratio, torch.full((2,), 0.2733991, **F64), rtol=0, atol=5e-8)


def test_t1_two_million_samples():
    samples = torch.randn(2_000_000, 2, generator=torch.Generator().manual_seed(0), **F64)
    m, s = (torch.tensor(value, requires_grad=True, **F64) for value in (0.7, 0.8))
    found = torch.stack(grad(gaussian_step(m, s, **T1, lam=0.1, samples=samples)[0], (m, s)))
    torch.testing.assert_close(found, torch.tensor((0.0820197, -0.0252587), **F64), rtol=0, atol=1e-3)


def random_latents(count=3, batch=4, shape=(2, 3, 5)):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, batch, *shape, generator=generator, **F64), torch.rand(batch, generator=generator, **F64)


@pytest.mark.parametrize("weights", ["official", "paper"])
def test_t2_linear_critic(weights):
    (x, eps, teacher), sigma = random_latents()
    matrix, bias = torch.randn(30, 30, **F64) / 5, torch.randn(30, **F64)
    x.requires_grad_()
    u = (flow.noise(x, eps, sigma).flatten(1) @ matrix.T + bias).view_as(x)
    found = grad(total(x, u, teacher, sigma, 0.1, weights), x)[0]
    n = (x - teacher).abs().mean((1, 2, 3)).detach()
    w_f, w_n = (1 / (n + 1e-8), 1 / sigma) if weights == "official" else ((1 - sigma) ** 2 / sigma**4, 1 + 0 * sigma)
    column = (slice(None), None)
    slope = w_f[column] * (u - teacher).flatten(1) + 0.1 * w_n[column] * (x - u).flatten(1)
    expected = (1 - sigma)[column] * (slope @ matrix) / x.numel()
    torch.testing.assert_close(found.flatten(1), expected.detach(), rtol=1e-12, atol=1e-12)


SHRUNK = {
    ("official", 1.0): {0.0: 1.0, 0.05: 0.8941, 0.1: 0.7995, 0.2: 0.6373, 0.5: 0.2977},
    ("official", 0.25): {0.0: 1.0, 0.05: 0.9144, 0.1: 0.8358, 0.2: 0.6965, 0.5: 0.3807},
    ("official", 4.0): {0.0: 1.0, 0.05: 0.8620, 0.1: 0.7432, 0.2: 0.5499, 0.5: 0.1937},
    ("paper", 1.0): {0.0: 1.0, 0.05: 0.9998, 0.1: 0.9997, 0.2: 0.9994, 0.5: 0.9984},
}
"""Variance at which the student's gradient vanishes, over the teacher's, by weights, teacher's variance and lambda."""


def variance_slope(v, teacher, lam, weights):
    """``dL/ds`` over ``s``, as a mean over the score times, from the weights that the loss uses."""
    sigma = flow.ScoreTime().levels
    a, k_f, k_t = 1 - sigma, gain(v, sigma), gain(teacher, sigma)
    n = math.sqrt(2 / math.pi) * ((1 - a * k_t) ** 2 * v + k_t**2 * sigma**2).sqrt()
    w_f, w_n = match_weights(sigma, n, weights)
    return (a * k_f * (a * w_f * (k_f - k_t) + lam * w_n * (1 - a * k_f))).mean().item()


@pytest.mark.parametrize(("weights", "teacher"), SHRUNK)
def test_t3_the_negative_residual_shrinks_the_variance(weights, teacher):
    for lam, expected in SHRUNK[weights, teacher].items():
        low, high = 0.01 * teacher, 2 * teacher
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if variance_slope(middle, teacher, lam, weights) > 0 else (middle, high)
        assert low / teacher == pytest.approx(expected, abs=5.1e-5)


def test_t3_the_slope_is_that_of_the_loss():
    z, eps = torch.randn(2, 400_000, generator=torch.Generator().manual_seed(3), **F64).unsqueeze(1)
    for sigma in (0.1, 0.5, 0.9):
        m, s = torch.zeros((), requires_grad=True, **F64), torch.tensor(0.9, requires_grad=True, **F64)
        x = m + s * z  # one sample of many dimensions, so that n is its expectation
        noisy = flow.noise(x, eps, sigma)
        u, teacher = posterior(noisy, 0, 0.81, sigma), posterior(noisy.detach(), 0, 1.0, sigma)
        found = torch.stack(grad(total(x, u, teacher, sigma, 0.1), (m, s)))
        a, k_f, k_t = 1 - sigma, gain(0.81, sigma), gain(1.0, sigma)
        n = math.sqrt(2 / math.pi) * math.sqrt((1 - a * k_t) ** 2 * 0.81 + k_t**2 * sigma**2)
        slope = a * k_f * 0.9 * (a / n * (k_f - k_t) + 0.1 / sigma * (1 - a * k_f))
        torch.testing.assert_close(found, torch.tensor((0.0, slope), **F64), rtol=0, atol=3e-3)


def tracking_flow(e, f, lam, fakes):
    """``(e', f')``: gradient flow of the real losses, student and critic being Gaussian means beside a teacher at 0."""
    m, fake = (torch.tensor(value, requires_grad=True, **F64) for value in (e, f))
    z, eps = SIGNS.T.unsqueeze(2)
    x, half = m + z, torch.full((4,), 0.5, **F64)
    noisy = flow.noise(x, eps, 0.5)
    loss = total(
        x, posterior(noisy, fake.detach(), 1.0, 0.5), posterior(noisy.detach(), 0, 1.0, 0.5), 0.5, lam, "paper"
    )
    clean, fixed = x.detach(), noisy.detach()
    velocity = flow.velocity_from_x0(fixed, posterior(fixed, fake, 1.0, 0.5), 0.5)
    contraction = critic_loss(velocity, flow.velocity(clean, eps), half, lam=0.0, weights="paper")
    return torch.stack((-grad(loss, m)[0], -fakes * grad(contraction, fake)[0]))


@pytest.mark.parametrize(
    ("lam", "fakes", "b", "ratio"), [(0.0, 1, 0.25, 0.250), (0.1, 1, 0.25, 0.275), (0.0, 5, 1.25, 0.559)]
)
def test_t5_the_negative_residual_damps(lam, fakes, b, ratio):
    jacobian = torch.stack((tracking_flow(1.0, 0.0, lam, fakes), tracking_flow(0.0, 1.0, lam, fakes)), 1)
    big_a, big_b = 1.0, 0.25 * lam
    expected = torch.tensor([[-big_b, -(big_a - big_b)], [b, -b]], **F64)
    torch.testing.assert_close(jacobian, expected, rtol=1e-12, atol=1e-12)
    trace, determinant = jacobian.trace(), torch.linalg.det(jacobian)
    torch.testing.assert_close(trace, torch.tensor(-(b + big_b), **F64))
    torch.testing.assert_close(determinant, torch.tensor(big_a * b, **F64))
    found = -torch.linalg.eigvals(jacobian).real.sum() / (2 * torch.linalg.eigvals(jacobian).prod().real.sqrt())
    assert found.item() == pytest.approx(ratio, abs=5e-4)


def test_t7_velocity_error_and_pseudo_target():
    (x, eps, velocity), sigma = random_latents()
    noisy, column = flow.noise(x, eps, sigma), sigma.view(-1, 1, 1, 1)
    u = flow.x0_from_velocity(noisy, velocity, sigma).requires_grad_()
    found = critic_loss(velocity, flow.velocity(x, eps), sigma)
    torch.testing.assert_close(found, ((u - x).square() / column.square()).mean().detach() / 2, rtol=1e-12, atol=0)
    paper = critic_loss(velocity, flow.velocity(x, eps), sigma, lam=0.2, weights="paper")
    torch.testing.assert_close(paper, 0.2 * (u - x).square().mean().detach() / 2, rtol=1e-12, atol=0)

    q = (u - x).detach() / column  # the official code's pseudo target
    pseudo = -0.1 * 0.5 * (u - (u.detach() - q)).square().mean()
    ours = grad(total(x, u, u.detach(), sigma), u)[0]
    torch.testing.assert_close(ours, grad(pseudo, u)[0], rtol=1e-12, atol=1e-16)


def test_t7_at_the_start_only_the_residual_acts():
    (x, u, _), sigma = random_latents()
    u.requires_grad_()
    parts, _ = student_losses(x, u, u.detach(), sigma, lam=0.1, weights="official")
    assert parts["fisher"].item() == 0 and parts["negative_residual"].item() < 0
    assert torch.equal(grad(total(x, u, u.detach(), sigma, lam=0.0), u)[0], torch.zeros_like(u))


def test_t7_paper_weights_are_the_squared_difference_of_scores():
    (x, u, teacher), sigma = random_latents()
    noisy = flow.noise(x, torch.randn_like(x), sigma)
    scores = (flow.score_from_x0(noisy, x0, sigma) for x0 in (u, teacher))
    difference = next(scores) - next(scores)
    found = student_losses(x, u, teacher, sigma, lam=0.0, weights="paper")[0]["fisher"]
    torch.testing.assert_close(found, difference.square().mean() / 2, rtol=1e-9, atol=0)


def mixture(generator, dim=3, parts=4):
    """The posterior mean of a random Gaussian mixture, as a function of the noisy point and the noise level."""
    means = 2 * torch.randn(parts, dim, generator=generator, **F64)
    roots = torch.randn(parts, dim, dim, generator=generator, **F64) / 2
    covariances, logits = (
        roots @ roots.mT + 0.05 * torch.eye(dim, **F64),
        torch.randn(parts, generator=generator, **F64),
    )

    def moments(noisy, sigma):
        a = 1 - sigma
        total_covariance = a * a * covariances + sigma**2 * torch.eye(dim, **F64)
        centred = noisy[:, None] - a * means
        solved = torch.linalg.solve(total_covariance, centred[..., None])[..., 0]
        weight = (logits - 0.5 * (centred * solved).sum(2) - 0.5 * torch.logdet(total_covariance)).softmax(1)
        each = means + a * (covariances @ solved[..., None])[..., 0]
        within = covariances - a * a * covariances @ torch.linalg.solve(total_covariance, covariances)
        mean = (weight[..., None] * each).sum(1)
        spread = each - mean[:, None]
        return mean, torch.einsum("bp,bpij->bij", weight, within + spread[..., None] * spread[:, :, None])

    return moments


@pytest.mark.parametrize("sigma", [0.1, 0.4, 0.8])
def test_t8_the_fisher_direction_agrees_with_dmd(sigma):
    generator = torch.Generator().manual_seed(4)
    student, data = mixture(generator), mixture(generator)
    x = 2 * torch.randn(1000, 3, generator=generator, **F64).requires_grad_()
    noisy = flow.noise(x, torch.randn(1000, 3, generator=generator, **F64), sigma)
    u, covariance = student(noisy, sigma)
    teacher = data(noisy.detach(), sigma)[0]

    rows = [grad(u[:, i].sum(), noisy, retain_graph=True)[0] for i in range(3)]
    jacobian = torch.stack(rows, 1)
    torch.testing.assert_close(jacobian, (1 - sigma) / sigma**2 * covariance.detach(), rtol=1e-7, atol=1e-9)
    assert torch.linalg.eigvalsh(jacobian).min() > -1e-12
    direction = grad(total(x, u, teacher, sigma, lam=0.0), x)[0]
    assert ((u - teacher) * direction).sum(1).min() >= 0


def test_sid_is_the_published_formula_and_reaches_every_input():
    (x, u, teacher), _ = random_latents()
    tensors = [tensor.clone().requires_grad_() for tensor in (x, u, teacher)]
    n = (x - teacher).abs().mean((1, 2, 3), keepdim=True)
    for alpha in (1.0, 0.5):
        loss = sid_loss(*tensors, alpha=alpha)
        gap = teacher - u
        torch.testing.assert_close(loss, (gap * ((teacher - x) - alpha * gap) / n).mean(), rtol=1e-7, atol=0)
    assert all(part.abs().sum() > 0 for part in grad(loss, tensors))


def slow_losses(x, u, teacher, sigma, weights):
    """The card's section 2.3 in loops over samples: ``L_Fisher`` and ``-L_NR`` of each sample."""
    fisher, residual = [], []
    for a, b, t, s in zip(x, u, teacher, sigma, strict=True):
        w_f, w_n = (1 / ((a - t).abs().mean() + 1e-8), 1 / s) if weights == "official" else ((1 - s) ** 2 / s**4, 1.0)
        fisher.append(0.5 * w_f * ((b - t) ** 2).sum() / a.numel())
        residual.append(0.5 * w_n * ((a - b) ** 2).sum() / a.numel())
    return torch.stack(fisher), torch.stack(residual)


@pytest.mark.parametrize("weights", ["official", "paper"])
@pytest.mark.parametrize("lam", [0.0, 0.1])
def test_parts_and_gradient_equal_autograd(lam, weights):
    (x, u, teacher), sigma = random_latents()
    fisher, residual = slow_losses(x, u.requires_grad_(), teacher, sigma, weights)
    parts, matched = student_losses(x, u, teacher, sigma, lam=lam, weights=weights)
    torch.testing.assert_close(matched.residual, residual.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(parts["fisher"], fisher.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(sum(parts.values()), (fisher - lam * residual).mean(), rtol=1e-12, atol=0)
    expected = grad((fisher - lam * residual).mean(), u)[0]
    torch.testing.assert_close(grad(sum(parts.values()), u)[0], expected, rtol=1e-12, atol=1e-15)


def test_without_residual_it_is_the_gradient_of_dmd2():
    (x, u, teacher), sigma = random_latents()
    x.requires_grad_()
    with torch.no_grad():
        step = (u - teacher) / (x - teacher).abs().mean((1, 2, 3), keepdim=True)
    loss = 0.5 * torch.nn.functional.mse_loss(x, (x - step).detach())
    _, matched = student_losses(x, u, teacher, sigma, lam=0.0, weights="official")
    torch.testing.assert_close(matched.gradient, grad(loss, x)[0], rtol=1e-7, atol=0)


def test_unknown_weights_are_named(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # users run without the checks of the test run
    (x, u, teacher), sigma = random_latents()
    with pytest.raises(ValueError, match="supported: official, paper"):
        student_losses(x, u, teacher, sigma, lam=0.1, weights="dmd")


@pytest.mark.parametrize("weights", ["official", "paper"])
def test_figures_compare_with_dmd2(weights):
    (x, u, teacher), _ = random_latents()
    sigma = torch.tensor([0.1, 0.3, 0.4, 1.0], **F64)
    _, found = student_losses(x, u, teacher, sigma, lam=0.1, weights=weights)
    numbers = figures(found, sigma)
    n = (x - teacher).abs().mean((1, 2, 3), keepdim=True)
    expected = ((u - teacher) / n).square().flatten(1).mean(1) / 2
    torch.testing.assert_close(numbers["dmd2"], expected.mean(), rtol=1e-6, atol=0)
    slope = found.gradient.abs().mean((1, 2, 3)) * x.numel()
    known = {name for name, value in numbers.items() if "slope" in name and not value.isnan()}
    assert known == {"slope[0-0.25]", "slope[0.25-0.5]", "slope[0.9-1]"}
    assert {"slope[0.5-0.75]", "slope[0.75-0.9]"} < numbers.keys()  # the same names whatever was drawn
    torch.testing.assert_close(numbers["slope[0.25-0.5]"], slope[1:3].mean())
