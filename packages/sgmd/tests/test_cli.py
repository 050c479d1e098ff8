"""`fewstep run sgmd` and `fewstep export` as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import imageio.v3 as iio
import pytest
from fewstep.cli import main
from fewstep.families import wan
from fewstep.students.export import DiffusersFolder
from fewstep_sgmd import SGMD


@pytest.fixture(scope="module")
def folder(tmp_path_factory, full_file, lora_file):
    """A pipeline, and students of it."""
    root = tmp_path_factory.mktemp("cli")
    wan.tiny_pipeline().save_pretrained(root / "base")
    SGMD(weights=full_file, size=(5, 32, 48)).save_pretrained(root / "full")
    SGMD(weights=lora_file).save_pretrained(root / "lora")
    DiffusersFolder(base=str(root / "base"))(SGMD(weights=full_file), root / "student")
    return root


@pytest.fixture
def fewstep(folder, monkeypatch, capsys):
    """The command line in this process, inside `folder`; returns exit code, stdout and stderr."""
    monkeypatch.chdir(folder)

    def call(*words) -> tuple[int, str, str]:
        threads = ["--threads", "1"] if words[0] == "run" else []
        code = main([*map(str, words), *threads])
        return code, *capsys.readouterr()

    return call


def test_run_in_a_process_of_its_own(folder):
    words = ["run", "sgmd", "--model", "base", "--method-from", "full", "--prompt", "a cat runs", "--output", "own.gif"]
    command, env = [sys.executable, "-m", "fewstep", *words], {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and (folder / "own.gif").is_file(), done.stderr


def test_a_teacher_is_no_student_unless_asked(fewstep, folder):
    """Its scheduler tells: a saved student holds the steps of the method, a teacher holds others."""
    clip = ["--frames", "1", "--height", "32", "--width", "32", "--prompt", "dog", "--output", "teacher.gif"]
    code, _, err = fewstep("run", "sgmd", "--model", "base", *clip)
    assert code == 2 and "base is no student: its scheduler holds other timesteps than 1000.0, 937.5" in err
    assert not (folder / "teacher.gif").exists()
    code, _, err = fewstep("run", "sgmd", "--model", "student", "--steps", "1000", "500", *clip)
    assert code == 2 and "student is no student: its scheduler holds other timesteps than 1000.0, 833.3" in err
    for words in (["--model", "student"], ["--model", "base", "--untrained"]):
        code, out, err = fewstep("run", "sgmd", *words, *clip)
        assert code == 0 and "network calls: 4" in out, err


def test_a_video_of_the_trained_size(fewstep, folder):
    words = ["run", "sgmd", "--model", "base", "--method-from", "full", "--prompt", "a cat runs", "--output", "out.mp4"]
    code, out, err = fewstep(*words, "--zoom", "2")
    assert code == 0, err
    assert "video: 5x32x48" in out and "network calls: 4" in out
    written = iio.imread(folder / "out.mp4", plugin="pyav")
    assert written.shape[1:] == (64, 96, 3) and len(written) % 5 == 0 and len(written) >= 48, "looped to 3 seconds"


def test_the_unchanged_model_stands_beside_the_method(fewstep, folder):
    words = [
        "run",
        "sgmd",
        "--model",
        "base",
        "--method-from",
        "full",
        "--prompt",
        "a cat runs",
        "--output",
        "both.gif",
    ]
    code, out, err = fewstep(*words, "--zoom", "1", "--compare", "--compare-steps", "3", "--compare-guidance", "1")
    assert code == 0, err
    assert "unchanged model: 3 network calls" in out and "as fast with the method" in out
    assert iio.imread(folder / "both.gif").shape[-3:] == (32, 96, 3)


def test_a_gif_with_the_flags_of_a_method(fewstep, folder, full_file):
    words = ["run", "sgmd", "--model", "base", "--weights", full_file, "--steps", "1000", "500", "--frames", "1"]
    words += ["--height", "32", "--width", "32", "--prompt", "dog", "--output", "out.gif"]
    code, out, err = fewstep(*words)
    assert code == 0, err
    assert "network calls: 2" in out and iio.imread(folder / "out.gif").shape[-3:] == (256, 256, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "out.avi"], "written as .mp4 or .gif"),
        (["--output", "none/out.gif"], "no folder"),
        (["--output", "out.gif", "--weights", "none.safetensors"], "none.safetensors cannot be read"),
        (["--output", "out.gif", "--method-from", "full", "--height", "33"], "height a multiple of 16"),
    ],
    ids=["ending", "folder", "weights", "size"],
)
def test_bad_input_is_one_line(fewstep, words, message):
    code, _, err = fewstep("run", "sgmd", "--model", "base", "--prompt", "a", *words)
    line = err.strip().splitlines()[-1]
    assert code == 2 and line.startswith("fewstep: ") and message in line


def test_export_beside_the_student(fewstep, folder):
    code, out, err = fewstep("export", "full", "--format", "lightx2v")
    assert code == 0, err
    assert out.splitlines()[-1] == "wrote full/lightx2v"
    config = json.loads((folder / "full" / "lightx2v" / "config.json").read_text())
    assert config["dit_original_ckpt"] == "full/lightx2v/distill_model.safetensors"


def test_export_for_comfy_in_another_folder(fewstep, folder):
    code, _, err = fewstep("export", "lora", "--format", "comfy", "--out", "own")
    assert code == 0 and (folder / "own" / "lora.safetensors").is_file(), err


def test_export_with_the_flags_of_the_format(fewstep, folder):
    words = ["export", "full", "--format", "lora", "--rank", "24", "--base", "base", "--out", "small"]
    code, out, err = fewstep(*words)
    assert code == 0, err
    assert "keeps 100.0 %" in out and (folder / "small" / "pytorch_lora_weights.safetensors").is_file()
    code, out, _ = fewstep("export", "full", "--format", "lora", "--help")
    assert code == 0 and "--rank INT" in out and "--base STR" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a saved method first"),
        (["full"], "formats of sgmd: diffusers, lora, lightx2v, comfy"),
        (["full", "--format", "lightx"], "did you mean lightx2v"),
        (["base", "--format", "lora"], "no fewstep.json"),
        (["full", "--format", "lora"], "name with --base"),
        (["full", "--format", "lora", "--ranks", "3"], "--ranks"),
    ],
    ids=["nothing", "no-format", "unknown-format", "no-method", "no-base", "flag"],
)
def test_bad_exports_are_one_line(fewstep, words, message):
    code, _, err = fewstep("export", *words)
    assert code == 2 and err.startswith("fewstep: ") and message in err.strip().splitlines()[-1]


def test_show_names_the_formats(fewstep):
    code, out, err = fewstep("show", "sgmd")
    assert code == 0, err
    assert "exports to comfy: " in out and "2605.30116" in out
