"""Pictures of every mode and orientation give the same upright RGB."""

import pytest
import torch
from fewstep import BadFileError
from fewstep.data.images import read_image, sample_grid
from PIL import Image, ImageOps

CORNERS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 250)]


def corners(image):
    """Colours near the four corners, row by row."""
    right, low = image.width - 4, image.height - 4
    return [image.getpixel(at) for at in ((4, 4), (right, 4), (4, low), (right, low))]


def near(found, wanted, room=12):
    return all(
        abs(a - b) <= room for one, two in zip(found, wanted, strict=True) for a, b in zip(one, two, strict=True)
    )


@pytest.fixture
def picture():
    """Four colours on 48x32 pixels."""
    page = Image.new("RGB", (48, 32))
    for number, colour in enumerate(CORNERS):
        page.paste(colour, (24 * (number % 2), 16 * (number // 2), 24 * (number % 2) + 24, 16 * (number // 2) + 16))
    return page


UNDO = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""EXIF orientation to the transposition that its camera made: PIL's numbers of flips and turns."""


@pytest.mark.parametrize("orientation", UNDO)
def test_exif_orientation_is_undone(picture, tmp_path, orientation):
    turn = UNDO[orientation]
    stored = picture if turn is None else picture.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    read = read_image(tmp_path / "photo.png")
    assert read.size == picture.size and near(corners(read), CORNERS)


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "L", "1", "LA", "YCbCr"])
def test_modes_are_converted(picture, tmp_path, mode):
    stored = picture.convert(mode)
    suffix = ".tiff" if mode in ("CMYK", "YCbCr") else ".png"
    stored.save(tmp_path / f"picture{suffix}")
    read = read_image(tmp_path / f"picture{suffix}")
    wanted = picture if mode not in ("L", "1", "LA") else picture.convert(mode).convert("RGB")
    assert read.mode == "RGB" and near(corners(read), corners(wanted))


def test_transparency_lies_on_white_and_sixteen_bits_are_scaled(tmp_path):
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((3, 3)) == (255, 255, 255)
    Image.new("I;16", (8, 8), 32768).save(tmp_path / "deep.png")
    assert near([read_image(tmp_path / "deep.png").getpixel((3, 3))], [(128, 128, 128)], room=1)


def test_an_animation_gives_its_first_frame(picture, tmp_path):
    picture.save(tmp_path / "moving.gif", save_all=True, append_images=[ImageOps.invert(picture)], duration=100)
    assert near(corners(read_image(tmp_path / "moving.gif")), CORNERS)


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_no_picture_is_a_clear_error(tmp_path, content):
    if content is not None:
        (tmp_path / "p.png").write_bytes(content)
    with pytest.raises(BadFileError, match="p.png is no picture"):
        read_image(tmp_path / "p.png")


def test_a_sample_grid_has_a_video_a_row():
    videos = torch.rand(2, 3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    page = sample_grid(videos, scale=2)
    assert page.size == (3 * 5 * 2, 2 * 4 * 2)
    pixel = (videos[1, 2, :, 3, 1] * 255).round().int().tolist()
    assert list(page.getpixel((2 * (2 * 5 + 1), 2 * (4 + 3)))) == pixel
