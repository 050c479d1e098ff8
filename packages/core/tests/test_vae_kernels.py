import pytest
import torch
from fewstep.kernels import causal_depthwise, rms_silu, upsample_conv
from fewstep.testing import KernelSuite


class TestRmsSilu(KernelSuite):
    @pytest.fixture
    def kernel(self):
        return rms_silu.KERNEL


class TestCausalDepthwise(KernelSuite):
    @pytest.fixture
    def kernel(self):
        return causal_depthwise.KERNEL


class TestUpsampleConv(KernelSuite):
    @pytest.fixture
    def kernel(self):
        return upsample_conv.KERNEL


@pytest.mark.parametrize("module", [rms_silu, causal_depthwise, upsample_conv], ids=lambda m: m.KERNEL.name)
def test_the_fast_version_agrees_to_rounding_in_float64_and_has_the_same_gradients(module):
    kernel = module.KERNEL
    for case in kernel.cases():
        if case.args[0].dtype != torch.float32:
            continue
        inputs = [tensor.double().requires_grad_() for tensor in case.args]
        mask = [torch.ones(())] if case.args[0].ndim == 5 else [(inputs[0].detach().square().sum(1, keepdim=True) > 0)]
        both = []
        for backend in ("naive", "cpu"):
            out = kernel.function(backend)(*inputs, **case.options)
            grads = torch.autograd.grad(out.square().sum(), inputs)
            both.append([out, grads[0] * mask[0], *grads[1:]])  # the norm has no gradient where all channels are zero
        for fast, naive in zip(*both, strict=True):
            torch.testing.assert_close(fast, naive, rtol=1e-9, atol=1e-9)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"gamma \[c\]"):
        rms_silu.rms_silu(torch.zeros(1, 2, 3, 3), torch.ones(3))
    with pytest.raises(ValueError, match="past < t"):
        causal_depthwise.causal_depthwise(
            torch.zeros(1, 1, 2, 3, 3), torch.zeros(2, 1, 3, 3, 3), torch.zeros(2), past=1
        )
    with pytest.raises(ValueError, match=r"\[o, c, 3, 3\]"):
        upsample_conv.upsample_conv(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3), torch.zeros(1))
