"""Videos are written as files that others read, or refused in one sentence before the work; measures of clips."""

from __future__ import annotations

import math
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
    frames = torch.from_numpy(iio.imread(tmp_path / name, plugin=plugin)).float() / 255
    assert frames.shape == (5, 48, 60, 3) and [path.name for path in tmp_path.iterdir()] == [name]
    torch.testing.assert_close(frames[:, 24, 45, 1], torch.linspace(0.2, 0.8, 5), rtol=0, atol=0.05)
    assert frames[:, 24, 10].max() < 0.05


@pytest.mark.parametrize(("frames", "fps", "count"), [(5, 16.0, 50), (6, 6.25, 24), (48, 16.0, 48), (97, 24.0, 97)])
def test_short_clips_are_repeated_whole_until_they_last(frames, fps, count):
    clip = ramp(frames)
    looped = video.looped(clip, fps)
    assert len(looped) == count and torch.equal(looped[:frames], clip) and torch.equal(looped[-frames:], clip)


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
    with pytest.raises(ValueError, match=r"a clip needs|fps must be|zoom=0 must be"):
        video.write(**{"frames": ramp(), "path": tmp_path / "clip.gif", **change})
    assert not list(tmp_path.iterdir())


def noise(*size, seed=0):
    """A clip ``[1, 3, 2, *size]`` from -1 to 1."""
    return torch.rand(1, 3, 2, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("offset", [0.1, 0.5])
def test_psnr_of_an_offset(offset):
    x = noise(8, 8)
    assert float(video.psnr(x + offset, x)) == pytest.approx(20 * math.log10(2 / offset), abs=1e-3)
    assert float(video.psnr(x, x)) == 100


def test_ssim_of_equal_clips_is_one_and_of_noise_about_zero():
    x, y = noise(40, 32), noise(40, 32, seed=1)
    assert float(video.ssim(x, x)) == pytest.approx(1, abs=1e-5)
    assert abs(float(video.ssim(x, y))) < 0.05
    assert float(video.ssim(x, x + 0.3 * y)) < 0.98


def test_ssim_of_frames_smaller_than_its_window_repeats_the_last_row_and_column():
    x, y = noise(5, 12), noise(5, 12, seed=1)
    larger = [torch.cat([clip, clip[..., -1:, :].expand(-1, -1, -1, 6, -1)], -2) for clip in (x, y)]
    torch.testing.assert_close(video.ssim(x, y), video.ssim(*larger))


def test_sharpness_falls_with_blur_and_rises_with_noise():
    x = noise(32, 32)
    blurred = torch.nn.functional.avg_pool2d(x[0].transpose(0, 1), 3, 1, 1).transpose(0, 1)[None]
    assert video.sharpness(x, x) == pytest.approx(1, abs=1e-5)
    assert video.sharpness(blurred, x) < 0.2 and video.sharpness(x + noise(32, 32, seed=1), x) > 1.5
