"""Videos are read as players show them: upright, at even times, from files alone."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from fewstep.data import video
from fewstep.data.video_reader import read_video
from fewstep.errors import BadFileError

av = pytest.importorskip("av")
TURNS = {  # matrix (a, b, c, d), and where the bright upper left corner goes: (rows, columns) from the top and left
    "upright": ((1, 0, 0, 1), ("top", "left")),
    "90 clockwise": ((0, 1, -1, 0), ("top", "right")),
    "180": ((-1, 0, 0, -1), ("bottom", "right")),
    "270 clockwise": ((0, -1, 1, 0), ("bottom", "left")),
    "mirrored": ((-1, 0, 0, 1), ("top", "right")),
    "mirrored and turned": ((0, 1, 1, 0), ("top", "left")),
}


def with_matrix(path, matrix):
    """Write the display matrix into the track header of an MP4, as phones do."""
    content = path.read_bytes()
    at = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (round(value * 65536) for value in matrix)
    path.write_bytes(content[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[at + 36 :])


def corner(frames=3, rows=32, columns=48):
    """Black frames whose upper left quarter is white."""
    clip = torch.zeros(frames, 3, rows, columns)
    clip[:, :, : rows // 2, : columns // 2] = 1
    return clip


@pytest.mark.parametrize("name", TURNS)
def test_turned_and_mirrored_videos_are_read_as_they_are_shown(tmp_path, name):
    matrix, (upper, left) = TURNS[name]
    video.write(corner(), tmp_path / "clip.mp4")
    with_matrix(tmp_path / "clip.mp4", matrix)
    frames = read_video(tmp_path / "clip.mp4").float() / 255
    tall, wide = (48, 32) if matrix[1] else (32, 48)
    assert frames.shape == (3, 3, tall, wide)
    quarters = {
        (v, h): frames[:, :, rows, columns].mean()
        for v, rows in (("top", slice(0, tall // 2 - 2)), ("bottom", slice(tall // 2 + 2, None)))
        for h, columns in (("left", slice(0, wide // 2 - 2)), ("right", slice(wide // 2 + 2, None)))
    }
    assert {place for place, value in quarters.items() if value > 0.8} == {(upper, left)}


def test_a_slanted_video_is_refused(tmp_path):
    video.write(corner(), tmp_path / "clip.mp4")
    with_matrix(tmp_path / "clip.mp4", (0.7, 0.7, -0.7, 0.7))
    with pytest.raises(BadFileError, match=r"clip\.mp4 is shown at an angle .* only turns by 90"):
        read_video(tmp_path / "clip.mp4")


def written(path, times, codec="mpeg4", size=32):
    """A video of grey frames, brighter one by one, that stand at these times in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width = stream.height = size
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1000)
        for number, time in enumerate(times):
            grey = torch.full((size, size, 3), 20 + 20 * number, dtype=torch.uint8)
            frame = av.VideoFrame.from_ndarray(grey.numpy())
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def numbers(frames):
    """Which of the frames of `written` these are."""
    return ((frames.float().mean((1, 2, 3)) - 20) / 20).round().int().tolist()


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("times", "shown"),
    [
        ([0, 40, 80, 120, 160], [0, 1, 2, 3, 4]),
        ([0, 41, 83, 125, 166, 208], [0, 1, 2, 3, 4, 5]),  # 24 a second, rounded
        ([0, 33, 60, 101, 133, 166], [0, 1, 2, 3, 4, 5]),  # a phone's
        ([0, 10, 20, 30, 200], [2, 3, 3, 3, 4]),  # a screen that then rests, at 25, 75, 125, 175 and 225 ms
        ([0, 100, 110, 120, 400], [0, 3, 3, 3, 4]),  # at 50, 150, 250, 350 and 450 ms
    ],
)
def test_frames_at_uneven_times_are_read_at_even_ones(tmp_path, ending, times, shown):
    path = tmp_path / f"clip.{ending}"
    written(path, times)
    assert numbers(read_video(path)) == shown
    assert numbers(read_video(path, most=3)) == shown[:3]
    assert numbers(read_video(path, every=2, most=2)) == shown[:3:2]


def test_a_video_that_changes_its_size_is_refused(tmp_path):
    for size in (32, 48):
        written(tmp_path / f"{size}.h264", [0, 40, 80], "libx264", size=size)
    (tmp_path / "both.h264").write_bytes(b"".join((tmp_path / f"{size}.h264").read_bytes() for size in (32, 48)))
    with pytest.raises(BadFileError, match=r"both\.h264 changes its size from 32x32 to 48x48 at frame 3"):
        read_video(tmp_path / "both.h264")
    assert len(read_video(tmp_path / "both.h264", most=3)) == 3


@pytest.mark.parametrize("name", ["at 12:30.mp4", "a:b.gif", "http:clip.mp4", "pipe:0.mp4"])
def test_names_with_colons_are_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    video.write(torch.linspace(0, 1, 3)[:, None, None, None].expand(-1, 3, 32, 48), Path(name), fps=10)
    assert read_video(Path(name)).shape == (3, 3, 32, 48) and [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", "some words\n" * 200),
        ("art.nfo", "some words\n" * 200),
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n"),
        ("list.txt", "ffconcat version 1.0\nfile clip.mp4\n"),
    ],
)
@pytest.mark.parametrize("most", [None, 1])
def test_text_is_no_video(tmp_path, name, content, most):
    video.write(corner(), tmp_path / "clip.mp4")
    (tmp_path / name).write_text(content)
    with pytest.raises(BadFileError, match=r"cannot be read as a video \(.*\); MP4, AVI, WebM, GIF"):
        read_video(tmp_path / name, most=most)
