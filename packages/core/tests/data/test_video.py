"""Videos are written as files that others read, or refused in one sentence before the work."""

from __future__ import annotations

import sys

import pytest
import torch
from fewstep.data import video
from fewstep.errors import FewstepError

iio = pytest.importorskip("imageio.v3")


def ramp(frames=5, channels=1, height=16, width=20):
    """Frames that get brighter, with a dark left half."""
    clip = torch.linspace(0.2, 0.8, frames).view(-1, 1, 1, 1).expand(-1, channels, height, width).clone()
    clip[..., : width // 2] = 0
    return clip


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "plugin"), [("clip.mp4", "pyav"), ("clip.gif", "pillow"), ("CLIP.MP4", "pyav")])
def test_what_is_written_is_what_is_read(tmp_path, name, plugin, channels):
    video.write(ramp(channels=channels), tmp_path / name, fps=6.25, zoom=3)
    found = torch.from_numpy(iio.imread(tmp_path / name, plugin=plugin)).float() / 255
    assert found.shape == (5, 48, 60, 3) and [path.name for path in tmp_path.iterdir()] == [name]
    torch.testing.assert_close(found[:, 24, 45, 1], torch.linspace(0.2, 0.8, 5), rtol=0, atol=0.05)
    assert found[:, 24, 10].max() < 0.05


def test_odd_sizes_are_filled_up_for_mp4(tmp_path):
    video.write(ramp(height=17, width=21), tmp_path / "odd.mp4")
    assert iio.imread(tmp_path / "odd.mp4", plugin="pyav").shape == (5, 18, 22, 3)
    assert iio.immeta(tmp_path / "odd.mp4", plugin="pyav")["fps"] == 16


@pytest.mark.parametrize(
    ("name", "message"),
    [("clip.avi", "written as .mp4 or .gif"), ("no/such/clip.mp4", "there is no folder"), ("clip", ".mp4 or .gif")],
)
def test_impossible_files_are_refused(tmp_path, name, message):
    with pytest.raises(FewstepError, match=message):
        video.check_writable(tmp_path / name)


@pytest.mark.parametrize(("name", "package"), [("clip.mp4", "av"), ("clip.gif", "imageio")])
def test_a_missing_writer_is_named_with_its_cure(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FewstepError, match=rf"needs {package}; install with: pip install 'fewstep-core\[video\]'"):
        video.write(ramp(), tmp_path / name)


@pytest.mark.parametrize("change", [{"fps": 0}, {"zoom": 0}, {"frames": torch.ones(2, 4, 3, 3)}, {"frames": ramp(0)}])
def test_impossible_clips_are_refused(tmp_path, change):
    with pytest.raises(ValueError, match="a clip needs"):
        video.write(**{"frames": ramp(), "path": tmp_path / "clip.gif", **change})
    assert not list(tmp_path.iterdir())
