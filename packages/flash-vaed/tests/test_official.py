"""Test 8 of the card: checkpoints of the authors' code."""

import json
import pickle

import pytest
import torch
from fewstep.errors import BadFileError
from fewstep_flash_vaed.fit import convert, preset
from fewstep_flash_vaed.official import load_official, names, to_official
from safetensors.torch import save_file
from torch.nn import functional as F

from .conftest import make_vae


@pytest.fixture
def wan():
    """The stages of Wan 2.1 at an eighth of its width."""
    return make_vae(base_dim=16, dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True], num_res_blocks=2)


@pytest.fixture
def student(wan):
    from fewstep_flash_vaed.decoder import WanDecoder, spec_of

    torch.manual_seed(0)
    return WanDecoder(spec_of(wan.config, *preset(wan.config))).eval()


def test_names_are_theirs(student):
    table = names(student)
    assert len(set(table.values())) == len(table)
    found = set(table.values())
    for name in (
        "conv2.weight",
        "decoder.conv1.bias",
        "decoder.middle.0.residual.2.depthwise_conv.weight",
        "decoder.middle.1.to_qkv.weight",
        "decoder.middle.2.residual.6.pointwise_conv.bias",
        "decoder.upsamples.3.time_conv.weight",
        "decoder.upsamples.4.shortcut.depthwise_conv.weight",
        "decoder.upsamples.7.resample.1.weight",
        "decoder.upsamples.8.residual.2.weight",
        "decoder.upsamples.14.shortcut.weight",
        "decoder.head.0.gamma",
        "decoder.head.2.weight",
    ):
        assert name in found


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_checkpoint_makes_the_same_student(student, wan, tmp_path, kind):
    official = to_official(student) | {"encoder.dummy.weight": torch.zeros(3)}
    path = tmp_path / f"Flash_VAED_Wan.{kind}"
    (torch.save if kind == "pth" else save_file)(official, path)
    operators, widths = preset(wan.config)
    method = convert(path, wan, tmp_path / "student", operators=operators, widths=widths)
    latents = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = student(latents)
        with method.apply(wan):
            assert torch.equal(wan.decode(latents).sample, expected.clamp(-1, 1))
    again = to_official(method.student(wan.config))
    assert again.keys() == official.keys() - {"encoder.dummy.weight"}
    assert all(torch.equal(again[name], official[name]) for name in again)


@torch.no_grad()
def test_a_frame_block_is_what_the_card_says(student):
    """A plain re-implementation of a narrow residual block from the checkpoint's tensors."""
    weights = to_official(student)

    def part(name):
        return weights[f"decoder.upsamples.12.{name}"]

    def norm(x, gamma):
        return F.silu(F.normalize(x, dim=1) * x.shape[1] ** 0.5 * gamma.flatten()[:, None, None])

    block = student.decoder.up_blocks[3].resnets[0]
    x = torch.randn(1, 3, block.norm1.gamma.shape[0], 6, 6, generator=torch.Generator().manual_seed(0))
    flat = x[0]
    h = F.conv2d(norm(flat, part("residual.0.gamma")), part("residual.2.weight"), part("residual.2.bias"), padding=1)
    h = F.conv2d(norm(h, part("residual.3.gamma")), part("residual.6.weight"), part("residual.6.bias"), padding=1)
    expected = h + F.conv2d(flat, part("shortcut.weight"), part("shortcut.bias"))
    torch.testing.assert_close(block(x)[0], expected, rtol=1e-5, atol=1e-5)


def test_what_is_no_checkpoint_is_named(student, tmp_path):
    path = tmp_path / "x.pth"
    whole = to_official(student)
    torch.save({name: value for name, value in whole.items() if "head" not in name}, path)
    with pytest.raises(BadFileError, match="3 weights are missing"):
        load_official(student, path)
    torch.save([1, 2], path)
    with pytest.raises(BadFileError, match="no state dict"):
        load_official(student, path)
    path.write_bytes(pickle.dumps({"a": json.loads}))
    with pytest.raises(BadFileError, match="cannot be read"):
        load_official(student, path)
    with pytest.raises(BadFileError, match="cannot be read"):
        load_official(student, tmp_path / "none.safetensors")


class Evil:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_no_code_of_a_checkpoint_runs(student, tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"conv2.weight": Evil()}, path)
    with pytest.raises(BadFileError):
        load_official(student, path)
    assert "ran" not in capsys.readouterr().out
