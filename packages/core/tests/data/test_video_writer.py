"""Frames are written as they come: whole, or not at all, and in constant memory."""

from __future__ import annotations

import contextlib
import gc
import resource

import pytest
import torch
from fewstep.data.video_writer import VideoWriter
from fewstep.errors import FewstepError

iio = pytest.importorskip("imageio.v3")
GREY = torch.linspace(0.2, 0.8, 10).view(10, 1, 1, 1).expand(10, 1, 17, 21)


def test_parts_make_the_whole(tmp_path):
    with VideoWriter(tmp_path / "out.mp4", fps=12.5, zoom=3) as writer:
        for part in GREY.split([1, 4, 5]):
            writer.add(part)
            assert not (tmp_path / "out.mp4").exists()
        assert writer.frames == 10
    writer.close()
    frames = torch.from_numpy(iio.imread(tmp_path / "out.mp4", plugin="pyav")).float() / 255
    assert frames.shape == (10, 52, 64, 3) and iio.immeta(tmp_path / "out.mp4", plugin="pyav")["fps"] == 12.5
    torch.testing.assert_close(frames[:, 20, 20, 1], GREY[:, 0, 0, 0], rtol=0, atol=0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_ctrl_c_keeps_what_is_there_and_an_error_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "kept.mp4") as writer:
        writer.add(GREY)
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), VideoWriter(tmp_path / "none.mp4") as writer:
        writer.add(GREY)
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["kept.mp4"]
    assert len(iio.imread(tmp_path / "kept.mp4", plugin="pyav")) == 10


@contextlib.contextmanager
def full_disk(size):
    """No file grows beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_leaves_no_half_file(tmp_path):
    writer = VideoWriter(tmp_path / "out.mp4")
    writer.add(torch.rand(12, 3, 64, 64))
    with full_disk(100), pytest.raises(OSError, match="too large"):
        writer.close()
    assert list(tmp_path.iterdir()) == []
    writer.close()
    writer.discard()


def test_the_first_error_is_told_where_the_file_cannot_be_closed_either(tmp_path):
    with full_disk(100), pytest.raises(ZeroDivisionError), VideoWriter(tmp_path / "out.mp4") as writer:
        writer.add(torch.rand(12, 3, 64, 64))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_put_in_place_leaves_no_part(tmp_path):
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(OSError), VideoWriter(tmp_path / "out.mp4") as writer:
        writer.add(GREY)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_without_frames_there_is_no_file(tmp_path):
    with VideoWriter(tmp_path / "out.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "fps", "said"),
    [("out.gif", 16, "written as .mp4"), ("no/out.mp4", 16, "no folder"), ("out.mp4", 0, "fps must be above 0")],
)
def test_what_cannot_be_written_is_said_before_the_first_frame(tmp_path, path, fps, said):
    with pytest.raises((FewstepError, ValueError), match=said):
        VideoWriter(tmp_path / path, fps=fps)


def test_memory_does_not_grow_with_the_length(tmp_path):
    chunk = torch.rand(12, 3, 64, 64)
    with VideoWriter(tmp_path / "long.mp4") as writer:
        for _ in range(20):
            writer.add(chunk)
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(200):
            writer.add(chunk)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 8_000, "kB; 200 chunks are 29,000 kB of bytes"
