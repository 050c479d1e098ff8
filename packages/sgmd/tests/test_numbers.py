"""Impossible numbers of a video are one sentence, before the video is made."""

import pytest
from fewstep.cli import main
from fewstep.families import wan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("numbers")
    wan.tiny_pipeline().save_pretrained(root / "base")
    wan.tiny_pipeline(patch_size=(6, 1, 1)).save_pretrained(root / "six")
    return root


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("base", "--frames 7", "7 frames of 32x32 do not fit: frames must be 1 plus a multiple of 4"),
        ("base", "--frames 0", "frames must be at least 1, found 0"),
        ("base", "--height -16", "height must be at least 1, found -16"),
        ("base", "--width 40", "height a multiple of 16, width of 16"),
        ("base", "--frames 1000001", "are too large: this model has positions for 61 frames of 256x256"),
        ("six", "--frames 5", "5 frames of 32x32 do not fit: frames must be 21 plus a multiple of 24"),
        ("base", "--fps 0", "fps must be above 0"),
        ("base", "--fps 1e30", "fps must be above 0 and at most 1000"),
        ("base", "--zoom -1", "zoom must be at least 0"),
        ("base", "--seed 99999999999999999999999", "--seed 99999999999999999999999: a whole number of at most 64 bits"),
        ("base", "--shift nan", "--shift nan: a finite number is needed"),
        ("base", "--strength inf", "--strength inf: a finite number is needed"),
        ("base", "--threads 100000000", "threads must be at least 1 and at most 1024"),
    ],
)
def test_impossible_numbers_are_one_sentence(folder, monkeypatch, capsys, model, words, said):
    monkeypatch.chdir(folder)
    size = ["--frames", "1", "--height", "32", "--width", "32", "--threads", "1"]
    line = ["run", "sgmd", "--model", model, "--untrained", "--prompt", "dog", "--output", "o.gif", *size]
    for flag, value in zip(words.split()[::2], words.split()[1::2], strict=True):
        line = [*line[: line.index(flag)], *line[line.index(flag) + 2 :]] if flag in line else line
        line += [flag, value]
    assert main(line) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and "failed" not in error
    last = error.splitlines()[-1]  # in this process, progress of loading may stand before it
    assert last.startswith("fewstep: ") and said in last
    assert not (folder / "o.gif").exists()
