"""The commands as a user types them, on a tiny VAE and a written video."""

import json

import pytest
import torch
from fewstep.data import video
from fewstep.data.video_reader import read_video
from fewstep.testing.cli import run_command_line
from fewstep_flash_vaed import FlashVAED
from safetensors.torch import load_file, save_file

from .conftest import make_vae


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved VAE, latents, and a short video of odd size."""
    root = tmp_path_factory.mktemp("cli")
    make_vae().save_pretrained(root / "vae")
    save_file({"latents": torch.randn(1, 4, 3, 6, 6)}, root / "latents.safetensors")
    video.write(torch.rand(8, 3, 26, 31), root / "clip.mp4")
    (root / "notes.txt").write_text("some words of a text\n" * 100)
    return root


def fewstep(folder, *words):
    return run_command_line([str(word) for word in words], folder)


@pytest.fixture(scope="module")
def fitted(folder):
    done = fewstep(
        folder, "fit", "flash-vaed", "--model", "vae", "--out", "student", "--clips", 0, "--widths", 0, 4, 4,
        "--latents", "latents.safetensors",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fit_prunes_and_tells(folder, fitted):
    assert "up2.1: 4 of 8 channels, R2" in fitted
    choices = json.loads((folder / "student" / "prune.json").read_text())
    assert len(choices) == 10 and choices[0]["point"] == "up1.in" and len(choices[0]["kept"]) == 4
    assert FlashVAED.from_pretrained(folder / "student").widths == (0, 4, 4)


@pytest.mark.usefixtures("fitted")
def test_run_decodes_a_users_video_side_by_side(folder):
    done = fewstep(
        folder, "run", "flash-vaed", "--model", "vae", "--method-from", "student", "--input", "clip.mp4",
        "--output", "out.mp4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in ("7 frames of 32x24", "sharpness", "against the teacher: PSNR"))
    assert read_video(folder / "out.mp4").shape == (77, 3, 24, 96), "7 frames at 24 a second, looped to 3 seconds"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "none.mp4", "--output", "o.mp4"], "none.mp4 cannot be read"),
        (["--input", "latents.safetensors", "--output", "o.mp4"], "latents.safetensors cannot be read"),
        (["--input", "notes.txt", "--output", "o.mp4"], "notes.txt cannot be read as a video"),
        (["--input", "clip.mp4", "--output", "o.mp4", "--height", "-1"], "height must be at least 0"),
        (["--input", "clip.mp4", "--output", "o.mp4", "--height", "1000000000000"], "height must be at most 16384"),
        (["--input", "clip.mp4", "--output", "o.mp4", "--fps", "0"], "fps must be above 0"),
        (["--input", "clip.mp4", "--output", "o.mp4", "--pool", "1000000000000"], "at most 256"),
        (["--input", "clip.mp4", "--output", "o.txt"], "videos are written as"),
        (["--input", "clip.mp4", "--output", "o.mp4", "--frames", "0"], "frames must be at least 1"),
        (["--input", "clip.mp4", "--output", "o.mp4", "--operators", "sparse"], "sparse"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, words, message):
    done = fewstep(folder, "run", "flash-vaed", "--model", "vae", *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("fitted")
def test_one_frame_is_a_clip_and_a_tiny_one_is_named(folder):
    video.write(torch.rand(1, 3, 8, 8), folder / "one.mp4")
    words = ("run", "exact-decode", "--model", "vae", "--output", "o.gif", "--input")
    done = fewstep(folder, *words, "one.mp4")
    assert done.returncode == 0 and "1 frames of 8x8" in done.stdout
    video.write(torch.rand(2, 3, 2, 2), folder / "tiny.mp4")
    done = fewstep(folder, *words, "tiny.mp4")
    assert done.returncode == 2 and "smaller than 4x4" in done.stderr


def test_fit_says_what_is_wrong(folder):
    (folder / "bad.safetensors").write_bytes(b"x")
    words = ("fit", "flash-vaed", "--model", "vae", "--out", "other", "--clips", 0)
    for more, message in (
        (("--latents", "bad.safetensors"), "bad.safetensors cannot be read"),
        ((), "at least one crop"),
        (("--latents", "latents.safetensors", "--widths", "0", "9", "4"), "cannot be kept"),
    ):
        done = fewstep(folder, *words, *more)
        assert done.returncode == 2 and message in done.stderr, done.stderr


@pytest.mark.usefixtures("fitted")
def test_a_student_goes_through_the_authors_format_and_back(folder):
    done = fewstep(folder, "export", "student", "--format", "official", "--out", "official", "--model", "vae")
    assert done.returncode == 0, done.stderr
    assert (folder / "official" / "Flash_VAED_Wan.safetensors").exists()
    done = fewstep(
        folder, "fit", "flash-vaed", "--model", "vae", "--out", "back", "--widths", 0, 4, 4,
        "--official", "official/Flash_VAED_Wan.safetensors",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = (load_file(folder / name / "weights.safetensors") for name in ("student", "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    wrong = fewstep(folder, "fit", "flash-vaed", "--model", "vae", "--out", "wrong", "--official", "clip.mp4")
    assert wrong.returncode == 2 and "clip.mp4" in wrong.stderr and not list((folder / "wrong").glob("*.json"))


def test_show_tells_where_the_time_goes(folder):
    done = fewstep(folder, "show", "flash-vaed", "--model", "vae")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert all(
        word in said for word in ("up0 resample", "head", "total", "GMAC", "% of it causal", "5 frames of 64x64")
    )
    (folder / "another-kind").mkdir()
    (folder / "another-kind" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    done = fewstep(folder, "show", "flash-vaed", "--model", "another-kind")
    assert done.returncode == 2 and "holds AutoencoderKL; an AutoencoderKLWan is needed" in " ".join(
        done.stderr.split()
    )
