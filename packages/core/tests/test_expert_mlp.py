"""The experts of a mixture: every backend against the specification, and what skipped pairs may not touch."""

from __future__ import annotations

import pytest
import torch
from fewstep.kernels.expert_mlp import KERNEL, cpu, expert_mlp
from fewstep.testing import KernelSuite


class TestExpertMLP(KernelSuite):
    @pytest.fixture
    def kernel(self):
        return KERNEL


def mixture(tokens=23, k=4, experts=8, h=48, f=40, skipped=0.5, seed=0):
    """x, index, weight, gate_up and down of a random mixture."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.rand(tokens, experts, generator=generator).topk(k).indices
    index[torch.rand(tokens, k, generator=generator) < skipped] = experts
    shapes = (tokens, h), (experts, 2 * f, h), (experts, h, f)
    x, gate_up, down = (torch.randn(*shape, generator=generator) / 7 for shape in shapes)
    return x, index, torch.rand(tokens, k, generator=generator), gate_up, down


@pytest.mark.parametrize("backend", ["naive", "cpu"])
@pytest.mark.parametrize("tokens", [1, 23])
def test_experts_without_a_kept_pair_are_not_read(backend, tokens):
    x, index, weight, gate_up, down = mixture(tokens)
    index[index == 3], index[index == 5] = 8, 8
    expected = expert_mlp(x, index, weight, gate_up, down, backend=backend)
    gate_up[[3, 5]], down[[3, 5]] = torch.nan, torch.nan
    weight[index == 8] = torch.nan
    assert torch.equal(expert_mlp(x, index, weight, gate_up, down, backend=backend), expected)


@pytest.mark.parametrize("backend", ["naive", "cpu"])
def test_a_token_without_a_kept_pair_is_exactly_zero_and_the_others_are_unchanged(backend):
    x, index, weight, gate_up, down = mixture(skipped=0)
    before = expert_mlp(x, index, weight, gate_up, down, backend=backend)
    index[11] = 8
    after = expert_mlp(x, index, weight, gate_up, down, backend=backend)
    assert (after[11] == 0).all()
    others = torch.arange(23) != 11
    torch.testing.assert_close(after[others], before[others], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2, 77])
def test_packed_weights_change_nothing(tokens, dtype):
    x, index, weight, gate_up, down = (t if t.dtype == torch.int64 else t.to(dtype) for t in mixture(tokens))
    if not cpu.packs(dtype):
        with pytest.raises(ValueError, match="this CPU cannot pack weights in bfloat16"):
            cpu.pack(gate_up, down)
        return
    packed = cpu.pack(gate_up, down)
    expected = expert_mlp(x, index, weight, gate_up, down, backend="naive").float()
    found = expert_mlp(x, index, weight, gate_up, down, packed=packed).float()
    assert (found - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 2e-2) * expected.abs().max()


def test_shapes_that_do_not_fit_are_named():
    x, index, weight, gate_up, down = mixture()
    with pytest.raises(ValueError, match=r"\[23, 3\]"):
        expert_mlp(x, index[:, :3], weight, gate_up, down)
    with pytest.raises(ValueError, match="whole numbers"):
        expert_mlp(x, index.float(), weight, gate_up, down)
