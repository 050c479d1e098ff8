"""The attention kernels against the suite, dense attention, each other and hand-made values."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fewstep.kernels import block_means as means_module
from fewstep.kernels import block_sparse_attention as sparse_module
from fewstep.kernels import gathered_attention as gathered_module
from fewstep.kernels.attention import merge_attention
from fewstep.kernels.block_means import block_means
from fewstep.kernels.block_sparse_attention import block_sparse_attention
from fewstep.kernels.gathered_attention import gathered_attention
from fewstep.testing.kernel import KernelSuite
from torch.nn import functional as F

BACKENDS = ("naive", "cpu")
EXACT = {"rtol": 1e-5, "atol": 1e-6}


class TestBlockSparseAttention(KernelSuite):
    @pytest.fixture
    def kernel(self):
        return sparse_module.KERNEL


class TestGatheredAttention(KernelSuite):
    @pytest.fixture
    def kernel(self):
        return gathered_module.KERNEL


class TestBlockMeans(KernelSuite):
    @pytest.fixture
    def kernel(self):
        return means_module.KERNEL


def tensors(b=2, h=4, g=2, t=7, n=45, d=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(b, h, t, d, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(b, g, n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    return query.to(dtype), key.to(dtype), value.to(dtype)


def dense(query, key, value, mask=None, scale=None):
    """PyTorch's own attention, with the heads of a group expanded by itself."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)


def dense_lse(query, key, mask, scale=None):
    """LSE by expanding KV heads and looking at every score."""
    scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).mT * (scale or query.shape[-1] ** -0.5)
    return scores.masked_fill(~mask, -math.inf).logsumexp(-1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gathering_everything_is_dense_attention(backend):
    query, key, value = tensors()
    tokens = torch.stack([torch.randperm(45), torch.arange(45)])
    found = gathered_attention(query, key, value, tokens, backend=backend)
    torch.testing.assert_close(found, dense(query, key, value), **EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gathered_is_masked_dense_attention(backend):
    query, key, value = tensors()
    tokens = torch.tensor([[3, 44, -1, 7, 8, 9, 0], [-1, 20, 21, 22, -1, -1, -1]])
    mask = torch.zeros(2, 1, 1, 45, dtype=torch.bool)
    for row, chosen in enumerate(tokens):
        mask[row, ..., chosen[chosen >= 0]] = True
    output, lse = gathered_attention(query, key, value, tokens, scale=0.3, return_lse=True, backend=backend)
    torch.testing.assert_close(output, dense(query, key, value, mask, 0.3), **EXACT)
    torch.testing.assert_close(lse, dense_lse(query, key, mask, 0.3), **EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [torch.full((2, 3), -1), torch.empty(2, 0, dtype=torch.int64)])
def test_an_empty_selection_gives_zero_and_minus_infinity(backend, tokens):
    output, lse = gathered_attention(*tensors(), tokens, return_lse=True, backend=backend)
    assert output.eq(0).all() and lse.eq(-math.inf).all()


def test_merging_disjoint_parts_is_the_whole():
    query, key, value = tensors()
    order = torch.stack([torch.randperm(45), torch.randperm(45)])
    parts = [order[:, :10], order[:, 10:11], torch.full((2, 1), -1), order[:, 11:]]
    found = [gathered_attention(query, key, value, part, return_lse=True) for part in parts]
    output, lse = merge_attention(*zip(*found, strict=True))
    whole = gathered_attention(query, key, value, order, return_lse=True)
    torch.testing.assert_close((output, lse), whole, **EXACT)
    nothing = merge_attention([torch.zeros_like(output)] * 2, [torch.full_like(lse, -math.inf)] * 2)
    assert nothing[0].eq(0).all() and nothing[1].eq(-math.inf).all()


def test_merging_keeps_the_dtype_and_names_wrong_shapes(monkeypatch):
    query, key, value = tensors(dtype=torch.bfloat16)
    half = torch.arange(45).expand(2, 45).split([20, 25], 1)
    found = [gathered_attention(query, key, value, part, return_lse=True) for part in half]
    output, lse = merge_attention(*zip(*found, strict=True))
    assert (output.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(output, dense(query, key, value), rtol=1e-2, atol=1e-2)
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # users run without the checks of the test run
    for outputs, lses in (([], []), ([output], [lse[:1]]), ([output, output[:1]], [lse, lse])):
        with pytest.raises(ValueError, match="one or more of one shape"):
            merge_attention(outputs, lses)


def gradients(function, *inputs):
    """Output, LSE and gradients of a loss that uses both."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output, lse = function(*leaves)
    loss = (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum() + lse.exp().sum()
    return output.detach(), lse.detach(), *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_gathered_equal_those_of_masked_dense(backend):
    tokens = torch.tensor([[3, 44, -1, 7, 8, 9, 0], [-1, 20, 21, 22, -1, -1, -1]])
    mask = torch.zeros(2, 1, 1, 45, dtype=torch.bool)
    for row, chosen in enumerate(tokens):
        mask[row, ..., chosen[chosen >= 0]] = True
    found = gradients(lambda *qkv: gathered_attention(*qkv, tokens, return_lse=True, backend=backend), *tensors())
    expected = gradients(lambda q, k, v: (dense(q, k, v, mask), dense_lse(q, k, mask)), *tensors())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_selection_has_no_gradient_rather_than_nan(backend):
    query, key, value = (tensor.requires_grad_() for tensor in tensors())
    gathered_attention(query, key, value, torch.full((2, 3), -1), backend=backend).sum().backward()
    assert all(tensor.grad.eq(0).all() for tensor in (query, key, value))


SIZES = {"query_block": 4, "key_block": 8}
"""Of `tensors`: two query blocks, the last of three rows; six key blocks, the last of five tokens."""


def random_lists(kept=0.5, b=2, h=4):
    """Lists of many lengths in any order, one of them empty, and the dense mask that says the same."""
    generator = torch.Generator().manual_seed(2)
    blocks = torch.rand(b, h, 2, 6, generator=generator).argsort(-1)
    blocks = blocks.masked_fill(torch.rand(blocks.shape, generator=generator) > kept, -1)
    blocks[0, 0, 1] = -1
    mask = torch.zeros(b, h, 7, 45, dtype=torch.bool)
    for i, j, q, at in (blocks >= 0).nonzero().tolist():
        block = blocks[i, j, q, at]
        mask[i, j, 4 * q : 4 * q + 4, 8 * block : 8 * block + 8] = True
    return blocks, mask


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heads", [2, 4, 8])
def test_all_blocks_are_dense_attention(backend, heads):
    query, key, value = tensors(h=heads)
    blocks = torch.rand(2, heads, 2, 6).argsort(-1)
    found = block_sparse_attention(query, key, value, blocks, **SIZES, backend=backend)
    torch.testing.assert_close(found, dense(query, key, value), **EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kept", [0.2, 0.5, 1.0])
def test_lists_are_masked_dense_attention(backend, kept):
    query, key, value = tensors()
    blocks, mask = random_lists(kept)
    output, lse = block_sparse_attention(query, key, value, blocks, **SIZES, return_lse=True, backend=backend)
    torch.testing.assert_close(output, dense(query, key, value, mask).nan_to_num(), **EXACT)
    torch.testing.assert_close(lse, dense_lse(query, key, mask), **EXACT)
    assert output[0, 0, 4:].eq(0).all() and lse[0, 0, 4:].eq(-math.inf).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_of_a_list_and_layout_of_keys_do_not_matter(backend):
    query, key, value = tensors()
    blocks, _ = random_lists()
    expected = block_sparse_attention(query, key, value, blocks, **SIZES, backend=backend)
    token_major = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value))
    found = block_sparse_attention(*token_major, blocks.flip(-1), **SIZES, backend=backend)
    torch.testing.assert_close(found, expected, **EXACT)


def test_tokens_after_the_last_are_never_read():
    query, key, value = tensors()
    blocks, _ = random_lists()
    buffers = (torch.cat([x, torch.full((2, 2, 9, 16), math.nan)], 2)[:, :, :45] for x in (key, value))
    found = block_sparse_attention(query, *buffers, blocks, **SIZES)
    torch.testing.assert_close(found, block_sparse_attention(query, key, value, blocks, **SIZES))


def test_halves_of_the_lists_merge_to_the_whole():
    inputs, (blocks, _) = tensors(), random_lists()
    halves = blocks[..., :2], blocks[..., 2:]
    found = [block_sparse_attention(*inputs, half, **SIZES, return_lse=True) for half in halves]
    whole = block_sparse_attention(*inputs, blocks, **SIZES, return_lse=True)
    torch.testing.assert_close(merge_attention(*zip(*found, strict=True)), whole, **EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gathered_is_block_sparse_where_all_heads_share_a_list(backend):
    query, key, value = tensors()
    shared = torch.tensor([[0, 5, 3], [2, -1, -1]])
    at = torch.arange(8)
    tokens = torch.where(shared[..., None] < 0, -1, shared[..., None] * 8 + at).flatten(1)
    tokens = tokens.masked_fill(tokens >= 45, -1)
    blocks = shared[:, None, None].expand(2, 4, 2, 3)
    found = gathered_attention(query, key, value, tokens, return_lse=True, backend=backend)
    expected = block_sparse_attention(query, key, value, blocks, **SIZES, return_lse=True, backend=backend)
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_threads_give_what_one_gives_in_every_mode(mode):
    threads = torch.get_num_threads()
    try:
        with mode():
            query, key, value = (x.requires_grad_(mode is torch.enable_grad) for x in tensors(t=40))
            blocks, _ = random_lists()
            blocks = blocks[:, :, :1].expand(-1, -1, 10, -1)
            torch.set_num_threads(1)
            expected = block_sparse_attention(query, key, value, blocks, **SIZES, return_lse=True)
            torch.set_num_threads(2)
            found = block_sparse_attention(query, key, value, blocks, **SIZES, return_lse=True)
        with ThreadPoolExecutor(1) as pool:  # of a thread that comes later: the caller's own never changed
            assert pool.submit(torch.get_num_threads).result() == 2
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_block_sparse_equal_those_of_masked_dense(backend):
    blocks, mask = random_lists()
    sparse = gradients(
        lambda *qkv: block_sparse_attention(*qkv, blocks, **SIZES, return_lse=True, backend=backend), *tensors()
    )
    query, key, value = tensors()

    def masked(query, key, value):
        scores = query @ key.repeat_interleave(2, 1).mT / 4 + torch.where(mask, 0, -1e30)
        weights = scores.softmax(-1) * mask.any(-1, keepdim=True)
        return weights @ value.repeat_interleave(2, 1), scores.logsumexp(-1)

    expected = gradients(masked, query, key, value)
    torch.testing.assert_close(sparse[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sparse[2:], expected[2:], rtol=1e-4, atol=1e-5)


def test_gradcheck_in_float64():
    query, key, value = (x[:1].requires_grad_() for x in tensors(h=2, g=1, d=4, dtype=torch.float64))
    blocks, _ = random_lists(b=1, h=2)
    assert torch.autograd.gradcheck(lambda *qkv: block_sparse_attention(*qkv, blocks, **SIZES), (query, key, value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": torch.full((2, 4, 2, 1), 6)}, r"blocks must lie in \[-1, 6\), found 6 to 6"),
        ({"blocks": torch.zeros(2, 4, 3, 1, dtype=torch.int64)}, r"blocks must be \[2, 4, 2, k\]"),
        ({"blocks": torch.zeros(2, 4, 2, 1)}, "blocks must be integers"),
        ({"key_block": 0}, "blocks must be positive"),
        ({"query": torch.ones(2, 3, 7, 16)}, "3 query heads are not a multiple of 2 KV heads"),
        ({"backend": "flex"}, "it has: naive, cpu"),
    ],
)
def test_wrong_input_of_block_sparse_attention_is_named(change, message):
    arguments = dict(zip(("query", "key", "value"), tensors(), strict=True)) | SIZES
    arguments |= {"blocks": torch.zeros(2, 4, 2, 1, dtype=torch.int64)} | change
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(**arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_block_means_by_hand(backend):
    keys = torch.arange(10.0).view(1, 1, 5, 2)
    found = block_means(keys, block=2, backend=backend)
    assert found.tolist() == [[[[1.0, 2.0], [5.0, 6.0], [8.0, 9.0]]]]


def test_says_which_backend_it_takes():
    for module in (sparse_module, gathered_module, means_module):
        assert module.KERNEL.chosen_backend("cpu") == "cpu"
        assert module.KERNEL.chosen_backend(torch.device("meta")) == "naive"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.tensor([[0, 45], [0, 0]])}, r"tokens must lie in \[-1, 45\), found 0 to 45"),
        ({"tokens": torch.tensor([[-2, 0], [0, 0]])}, "found -2 to 0"),
        ({"tokens": torch.zeros(2, 3)}, "tokens must be integers"),
        ({"tokens": torch.zeros(1, 3, dtype=torch.int64)}, r"tokens must be \[2, s\]"),
        ({"query": torch.ones(2, 3, 7, 16)}, "3 query heads are not a multiple of 2 KV heads"),
        ({"query": torch.ones(2, 4, 7, 8)}, "one head size"),
        ({"query": torch.ones(4, 7, 16)}, r"query must be \[b, h, t, d\]"),
        ({"query": torch.ones(2, 4, 7, 16).half()}, "one floating-point dtype"),
        ({"value": torch.ones(2, 2, 44, 16)}, r"query must be \[b, h, t, d\]"),
        ({"backend": "cuda"}, "it has: naive, cpu"),
    ],
)
def test_wrong_input_of_gathered_attention_is_named(change, message):
    arguments = dict(zip(("query", "key", "value"), tensors(), strict=True))
    arguments |= {"tokens": torch.zeros(2, 1, dtype=torch.int64)} | change
    with pytest.raises(ValueError, match=message):
        gathered_attention(**arguments)


def test_wrong_input_of_block_means_is_named():
    _, key, _ = tensors()
    for keys, block, message in ((key[0], 4, r"keys must be \[b, g, n, d\]"), (key, 0, "block must be positive")):
        with pytest.raises(ValueError, match=message):
            block_means(keys, block=block)
