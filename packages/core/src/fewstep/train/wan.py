"""What is known of the Wan models without downloading them, and how their latents are decoded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import FewstepError
from ..flow import Latent


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a text-to-video model."""

    transformer: dict[str, Any]
    """Configuration of its ``WanTransformer3DModel``."""
    temporal: int = 4
    """Frames in one latent frame, after the first."""
    spatial: int = 8
    """Pixels in one latent pixel, each way."""

    def latent(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape ``(C, F, H, W)`` of the latent of a video.

        Raises:
            ValueError: the video does not divide into latents and patches.
        """
        _, patch_h, patch_w = self.transformer.get("patch_size", (1, 2, 2))
        if (frames - 1) % self.temporal or height % (self.spatial * patch_h) or width % (self.spatial * patch_w):
            raise ValueError(
                f"{frames} frames of {height}x{width} do not fit: frames - 1 must be a multiple of {self.temporal}, "
                f"height of {self.spatial * patch_h}, width of {self.spatial * patch_w}"
            )
        size = (frames - 1) // self.temporal + 1, height // self.spatial, width // self.spatial
        return (self.transformer.get("in_channels", 16), *size)

    def empty(self) -> nn.Module:
        """The transformer on the meta device: sizes without numbers."""
        from diffusers import WanTransformer3DModel

        with torch.device("meta"):
            return WanTransformer3DModel(**self.transformer).eval()


_SMALL = {"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
_LARGE = {"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824}
_FIVE = {"num_layers": 30, "num_attention_heads": 24, "attention_head_dim": 128, "ffn_dim": 14336}
KNOWN = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": Architecture(transformer=_SMALL),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": Architecture(transformer=_LARGE),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": Architecture(
        transformer={**_FIVE, "in_channels": 48, "out_channels": 48}, spatial=16
    ),
}
"""Sizes by hub id."""
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""The negative prompt that Wan was released with."""


def architecture(name: str) -> Architecture:
    """Sizes of a model by hub id, local folder or loader, without downloading anything.

    Raises:
        FewstepError: its sizes are not known here.
    """
    from .. import plugins
    from ..loaders import load

    if name in KNOWN:
        return KNOWN[name]
    folder = Path(name).expanduser()
    if (folder / "transformer" / "config.json").is_file():
        vae = _config(folder / "vae") if (folder / "vae").is_dir() else {}
        return Architecture(
            transformer=_config(folder / "transformer"),
            temporal=vae.get("scale_factor_temporal", 4),
            spatial=vae.get("scale_factor_spatial", 8),
        )
    if name in plugins.loaders():
        return of_pipeline(load(name).model)
    raise FewstepError(f"the sizes of {name!r} are not known: a plan needs a local folder or one of {', '.join(KNOWN)}")


def of_pipeline(pipe: Any) -> Architecture:
    """Sizes of a loaded ``WanPipeline``."""
    config = {key: value for key, value in pipe.transformer.config.items() if not key.startswith("_")}
    return Architecture(
        transformer=config, temporal=pipe.vae_scale_factor_temporal, spatial=pipe.vae_scale_factor_spatial
    )


def _config(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if not key.startswith("_")}


@torch.no_grad()
def decode(pipe: Any, latents: Latent) -> Float[Tensor, "b f 3 h w"]:
    """Videos with values in [0, 1] from the latents of a ``WanPipeline``; its VAE goes where the latents are.

    The latents of a pipeline without a VAE are pixels in [-1, 1], of one channel or three.
    """
    if pipe.vae is None:
        return (latents.float() / 2 + 0.5).clamp(0, 1).transpose(1, 2).expand(-1, -1, 3, -1, -1)
    vae = pipe.vae.to(latents.device)
    shape = 1, -1, 1, 1, 1
    mean = torch.tensor(vae.config.latents_mean, device=latents.device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=latents.device).view(shape)
    video = vae.decode((latents * std + mean).to(vae.dtype), return_dict=False)[0]
    return (video.float() / 2 + 0.5).clamp(0, 1).transpose(1, 2)


def sheet(videos: Float[Tensor, "b f 3 h w"], *, scale: int = 1) -> Any:
    """A ``PIL.Image`` with one video in each row, its frames side by side, each pixel `scale` pixels wide."""
    from PIL import Image

    pixels = (videos * 255).round().to(torch.uint8).cpu()
    rows, frames, _, height, width = pixels.shape
    page = pixels.permute(0, 3, 1, 4, 2).reshape(rows * height, frames * width, 3)
    image = Image.fromarray(page.contiguous().numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
