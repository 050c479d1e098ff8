"""Checkpoints of the authors' code, both ways."""

import gc
import json
import pickle
import tracemalloc

import pytest
import torch
from diffusers import AutoencoderKLWan
from fewstep.contract import Loaded
from fewstep.errors import BadFileError, UnsupportedModelError
from fewstep_flash_vaed.decoder import WanDecoder, decoder_shape, preset
from fewstep_flash_vaed.fit import Prune
from fewstep_flash_vaed.weights import load, official_names, read_tensors, to_official
from safetensors.torch import save_file
from torch.nn import functional as F

from .conftest import make_vae


@pytest.fixture
def wan():
    """The stages of Wan 2.1 at a sixth of its width."""
    return make_vae(base_dim=16, dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True], num_res_blocks=2)


@pytest.fixture
def student(wan):
    torch.manual_seed(0)
    return WanDecoder(decoder_shape(wan.config, *preset(wan.config))).eval()


def dense(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def separable(name, inside, outside, size=3):
    depthwise = dense(f"{name}.depthwise_conv", inside, 1, size, size, size)
    return depthwise | dense(f"{name}.pointwise_conv", outside, inside, 1, 1, 1)


def separable_block(number, inside, width):
    block = f"decoder.{number}"
    norms = {f"{block}.residual.0.gamma": (inside, 1, 1, 1), f"{block}.residual.3.gamma": (width, 1, 1, 1)}
    convs = separable(f"{block}.residual.2", inside, width) | separable(f"{block}.residual.6", width, width)
    return norms | convs | (separable(f"{block}.shortcut", inside, width, 1) if inside != width else {})


def frame_block(number, width):
    block = f"decoder.{number}"
    convs = dense(f"{block}.residual.2", width, width, 3, 3) | dense(f"{block}.residual.6", width, width, 3, 3)
    norms = {f"{block}.residual.{part}.gamma": (width, 1, 1) for part in (0, 3)}
    return norms | convs | dense(f"{block}.shortcut", width, width, 1, 1)


def official_shapes():
    """Names and shapes of the weights of the authors' student of Wan 2.1, written down by hand."""
    shapes = dense("conv2", 16, 16, 1, 1, 1) | dense("decoder.conv1", 384, 16, 3, 3, 3)
    shapes |= separable_block("middle.0", 384, 384) | separable_block("middle.2", 384, 384)
    shapes |= {"decoder.middle.1.norm.gamma": (384, 1, 1)}
    shapes |= dense("decoder.middle.1.to_qkv", 1152, 384, 1, 1) | dense("decoder.middle.1.proj", 384, 384, 1, 1)
    for number, inside in enumerate((384, 384, 384, None, 192, 384, 384)):
        shapes |= separable_block(f"upsamples.{number}", inside, 384) if inside else {}
    for number, outside in ((3, 192), (7, 24)):
        shapes |= dense(f"decoder.upsamples.{number}.resample.1", outside, 384, 3, 3)
        shapes |= dense(f"decoder.upsamples.{number}.time_conv", 768, 384, 3, 1, 1)
    for number in (8, 9, 10):
        shapes |= frame_block(f"upsamples.{number}", 24)
    shapes |= dense("decoder.upsamples.11.resample.1", 12, 24, 3, 3)
    for number in (12, 13, 14):
        shapes |= frame_block(f"upsamples.{number}", 12)
    return shapes | {"decoder.head.0.gamma": (12, 1, 1, 1)} | dense("decoder.head.2", 3, 12, 3, 3, 3)


def test_an_export_has_the_names_and_shapes_of_the_authors_classes():
    with torch.device("meta"):
        config = AutoencoderKLWan().config
        exported = to_official(WanDecoder(decoder_shape(config, *preset(config))))
    assert {name: tuple(value.shape) for name, value in exported.items()} == official_shapes()


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_checkpoint_makes_the_same_student(student, wan, tmp_path, kind):
    official = to_official(student) | {"encoder.dummy.weight": torch.zeros(3)}
    path = tmp_path / f"Flash_VAED_Wan.{kind}"
    (torch.save if kind == "pth" else save_file)(official, path)
    method = Prune(official=path)(Loaded(model=wan, name="tiny"), tmp_path / "student")
    latents = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = student(latents)
        with method.apply(wan):
            assert torch.equal(wan.decode(latents).sample, expected.clamp(-1, 1))
    again = to_official(method.student(wan.config))
    assert again.keys() == official.keys() - {"encoder.dummy.weight"}
    assert all(torch.equal(again[name], official[name]) for name in again)


@torch.no_grad()
def test_a_frame_block_computes_what_theirs_does(student):
    """A plain re-implementation of a narrow residual block from the checkpoint's tensors."""
    weights = to_official(student)

    def part(name):
        return weights[f"decoder.upsamples.12.{name}"]

    def norm(x, gamma):
        return F.silu(F.normalize(x, dim=1) * x.shape[1] ** 0.5 * gamma)

    block = student.decoder.up_blocks[3].resnets[0]
    x = torch.randn(1, 3, block.norm1.gamma.shape[0], 6, 6, generator=torch.Generator().manual_seed(0))
    flat = x[0]
    h = F.conv2d(norm(flat, part("residual.0.gamma")), part("residual.2.weight"), part("residual.2.bias"), padding=1)
    h = F.conv2d(norm(h, part("residual.3.gamma")), part("residual.6.weight"), part("residual.6.bias"), padding=1)
    expected = h + F.conv2d(flat, part("shortcut.weight"), part("shortcut.bias"))
    torch.testing.assert_close(block(x)[0], expected, rtol=1e-5, atol=1e-5)


def test_pooled_attention_cannot_be_exported(wan):
    with pytest.raises(UnsupportedModelError, match="attends to every pixel"):
        to_official(WanDecoder(decoder_shape(wan.config, pool=2)))


def test_a_file_that_is_no_checkpoint_is_named(student, tmp_path):
    path, names, weights = tmp_path / "x.pth", official_names(student), to_official(student)
    torch.save({name: value for name, value in weights.items() if "head" not in name}, path)
    with pytest.raises(BadFileError, match="3 weights are missing"):
        load(student, path, names)
    torch.save([1, 2], path)
    with pytest.raises(BadFileError, match="no state dict"):
        load(student, path, names)
    path.write_bytes(pickle.dumps({"a": json.loads}, protocol=2))
    with pytest.raises(BadFileError, match="cannot be read"):
        load(student, path, names)
    with pytest.raises(BadFileError, match="cannot be read"):
        load(student, tmp_path / "none.safetensors", names)


class Evil:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_no_code_of_a_checkpoint_runs(student, tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"conv2.weight": Evil()}, path)
    with pytest.raises(BadFileError):
        load(student, path, official_names(student))
    assert "ran" not in capsys.readouterr().out


def test_reading_weights_again_and_again_keeps_nothing(tmp_path):
    """Reading from a file, safetensors 0.8 keeps two numbers of each tensor."""
    save_file({f"{number}.weight": torch.zeros(4, 4) for number in range(50)}, tmp_path / "a.safetensors")
    for _ in range(3):
        read_tensors(tmp_path / "a.safetensors")
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(40):
            read_tensors(tmp_path / "a.safetensors")
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 20 * 40 * 50  # bytes; 57 of each tensor were kept
