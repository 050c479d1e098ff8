"""`DigitsJudge`: a small 3-D CNN that classifies digit, direction and speed of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from .words import DIGITS, DIRECTIONS, SPEEDS, Label


@dataclass(frozen=True)
class Verdict:
    """Output of the judge for a batch of clips."""

    digit: Float[Tensor, "b 10"]
    """Logits, as the next two."""
    direction: Float[Tensor, "b 8"]
    speed: Float[Tensor, "b 2"]
    features: Float[Tensor, "b d"]
    """The penultimate layer."""
    frame_digit: Float[Tensor, "b f 10"]
    """Logits of the digit in each single frame."""

    def right(self, labels: Sequence[Label]) -> Float[Tensor, "b 3"]:
        """1 where digit, direction and speed are those of the labels; parts that are left open are always right."""
        seen = torch.stack([logits.argmax(-1) for logits in (self.digit, self.direction, self.speed)], 1)
        rows = [[-1 if part is None else part for part in (a.digit, a.direction, a.speed)] for a in labels]
        wanted = torch.tensor(rows, device=seen.device)
        return ((seen == wanted) | (wanted < 0)).float()


class DigitsJudge(ModelMixin, ConfigMixin):
    """Frame by frame first (three 2-D convolutions), then over time (two 3-D ones)."""

    @register_to_config
    def __init__(self, width: int = 32, features: int = 64) -> None:
        super().__init__()
        wide = 2 * width
        self.frame = nn.Sequential(
            _block(1, width, (1, 3, 3), (1, 1, 1)),
            _block(width, width, (1, 3, 3), (1, 2, 2)),
            _block(width, wide, (1, 3, 3), (1, 2, 2)),
        )
        self.clip = nn.Sequential(_block(wide, wide, (3, 3, 3), (1, 1, 1)), _block(wide, wide, (3, 3, 3), (1, 1, 1)))
        self.penultimate = nn.Sequential(nn.Linear(wide, features), nn.SiLU())
        self.digit = nn.Linear(features, len(DIGITS))
        self.direction = nn.Linear(features, len(DIRECTIONS))
        self.speed = nn.Linear(features, len(SPEEDS))
        self.frame_digit = nn.Linear(wide, len(DIGITS))

    def forward(self, pixels: Float[Tensor, "b 1 f h w"]) -> Verdict:
        """Judge clips with values from -1 to 1; values outside are clipped, as a viewer would."""
        maps = self._maps(pixels)
        features = self.penultimate(self.clip(maps).mean((2, 3, 4)))
        return Verdict(
            digit=self.digit(features),
            direction=self.direction(features),
            speed=self.speed(features),
            features=features,
            frame_digit=self.frame_digit(_pooled(maps)),
        )

    def frame_features(self, pixels: Float[Tensor, "b 1 f h w"]) -> Float[Tensor, "b f d"]:
        """Features of each frame by itself; `frame_digit` reads digits from them."""
        return _pooled(self._maps(pixels))

    def _maps(self, pixels: Tensor) -> Tensor:
        return self.frame((pixels.clamp(-1, 1) + 1) / 2)  # background 0, like the padding


def _pooled(maps: Float[Tensor, "b d f h w"]) -> Float[Tensor, "b f d"]:
    return maps.mean((3, 4)).mT


def _block(inside: int, outside: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Sequential(
        nn.Conv3d(inside, outside, kernel, stride, padding, bias=False), nn.BatchNorm3d(outside), nn.SiLU()
    )
