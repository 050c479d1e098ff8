"""Wan text-to-video models of diffusers: velocity, latents, prompts, sizes, and tiny ones for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.files import read_text
from ..errors import BadFileError, UnsupportedModelError
from ..flow import TRAIN_STEPS, Latent
from . import known, unwrapped, wan_vae

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
"""Endings of the names of the layers that get LoRA adapters by default."""
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""The negative prompt that Wan was released with."""
TEXT_WIDTH = 8
"""Width of the text encoder that conditions `tiny`."""
WORDS = ("<pad>", "<unk>", "a", "cat", "dog", "runs", "sleeps", "fast")
"""Vocabulary of `tiny_pipeline`."""


def check(model: Any) -> Any:
    """Return the transformer of a ``WanPipeline`` with one transformer.

    Raises:
        UnsupportedModelError: no ``WanPipeline``, one with two experts, or one whose weights are not plain tensors.
    """
    from diffusers import WanPipeline

    kind = type(model).__name__
    if not isinstance(model, WanPipeline):
        raise UnsupportedModelError(f"{kind} is no WanPipeline; load one with diffusers or fewstep.load")
    if model.transformer is None or model.transformer_2 is not None:
        raise UnsupportedModelError(
            f"this {kind} has two experts (Wan2.2-A14B); those with one transformer are supported"
        )
    transformer = unwrapped(model.transformer)
    for name, parameter in transformer.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            raise UnsupportedModelError(
                f"{name} of this {kind} is quantised or offloaded layer by layer; apply the method before that"
            )
    return transformer


def velocity(network: nn.Module, noisy: Latent, sigma: Float[Tensor, " b"], cond: Float[Tensor, "b t d"]) -> Latent:
    """Call a ``WanTransformer3DModel``: timestep ``1000 sigma``, not rounded; prompt embeddings as condition.

    One timestep for each sample also serves Wan2.2-TI2V-5B: from prompts alone all of its tokens have the same.
    """
    timestep = TRAIN_STEPS * sigma
    return network(hidden_states=noisy, timestep=timestep, encoder_hidden_states=cond, return_dict=False)[0]


def hidden_tokens(
    network: nn.Module, noisy: Latent, sigma: Float[Tensor, " b"], cond: Float[Tensor, "b t d"], block: int
) -> Float[Tensor, "b f s d"]:
    """Hidden tokens after one block of a ``WanTransformer3DModel``, by latent frame; later blocks do not run.

    Meanwhile the network has no later blocks for other callers either. Gradients flow to `noisy`.

    Args:
        network: the transformer.
        noisy: ``x_s``, ``[B, C, F, H, W]``.
        sigma: noise levels.
        cond: prompt embeddings.
        block: number of the block, from 0.

    Raises:
        ValueError: there is no such block.
    """
    model = unwrapped(network)
    blocks, seen = model.blocks, []
    if not 0 <= block < len(blocks):
        raise ValueError(f"block {block} is not among the {len(blocks)} blocks of this {type(model).__name__}")
    # cut short, not left by an exception: hooks of sharding and recomputation see a whole forward pass
    hook = blocks[block].register_forward_hook(lambda _, inputs, output: seen.append(output))
    model.blocks = blocks[: block + 1]
    try:
        velocity(network, noisy, sigma, cond)
    finally:
        model.blocks = blocks
        hook.remove()
    return seen[0].unflatten(1, (noisy.shape[2] // model.config.patch_size[0], -1))


def encode_prompts(pipe: Any, prompts: Sequence[str], tokens: int) -> Float[Tensor, "b t d"]:
    """Prompt embeddings, padded to `tokens` rows with zeros (WanPipeline pads to 512)."""
    embeddings, _ = pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False, max_sequence_length=tokens)
    return embeddings


def check_prompts(pipe: Any, prompts: Sequence[str], tokens: int) -> None:
    """Refuse prompts that the tokenizer would cut off without a word.

    Raises:
        ValueError: a prompt has more tokens than the model reads.
    """
    for prompt in prompts:
        if (count := len(pipe.tokenizer(prompt)["input_ids"])) > tokens:
            raise ValueError(f"the prompt has {count} tokens and the model reads {tokens}: shorten {prompt[:40]!r}")


def prompt_tokens(pipe: Any) -> int:
    """Rows of a prompt embedding: what the tokenizer was saved with, and at most the 512 that Wan was trained with."""
    return 512 if pipe.tokenizer is None else min(512, pipe.tokenizer.model_max_length)


@torch.no_grad()
def decode(pipe: Any, latents: Latent) -> Float[Tensor, "b f 3 h w"]:
    """Videos with values in [0, 1] from the latents of a ``WanPipeline``; its VAE goes where the latents are.

    The latents of a pipeline without a VAE are pixels in [-1, 1], of one channel or three.
    """
    if pipe.vae is None:
        return (latents.float() / 2 + 0.5).clamp(0, 1).transpose(1, 2).expand(-1, -1, 3, -1, -1)
    vae = pipe.vae.to(latents.device)
    video = vae.decode(denormalised(vae, latents).to(vae.dtype), return_dict=False)[0]
    return (video.float() / 2 + 0.5).clamp(0, 1).transpose(1, 2)


@torch.no_grad()
def image_latent(pipe: Any, latents: Latent) -> Float[Tensor, "b c 1 h w"]:
    """Latent of the last pixel frame of a video, encoded as an image: as the first of another video would be."""
    if pipe.vae is None:
        return latents[:, :, -1:]
    vae = pipe.vae
    pixels = decode(pipe, latents)[:, -1:].transpose(1, 2)
    return normalised(vae, vae.encode((2 * pixels - 1).to(vae.dtype)).latent_dist.mode())


def normalised(vae: Any, latents: Latent) -> Latent:
    """Latents as the transformer takes them, from those of the VAE's encoder; the inverse of `denormalised`."""
    mean, std = _statistics(vae, latents)
    return (latents - mean) / std


def denormalised(vae: Any, latents: Latent) -> Latent:
    """Latents as the VAE's decoder takes them: scaled and shifted by its statistics."""
    mean, std = _statistics(vae, latents)
    return latents * std + mean


def _statistics(vae: Any, latents: Latent) -> tuple[Tensor, Tensor]:
    config, shape = vae.config, (1, -1, 1, 1, 1)
    values = (torch.tensor(part, device=latents.device) for part in (config.latents_mean, config.latents_std))
    mean, std = (part.view(shape) for part in values)
    return mean, std


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a Wan text-to-video model."""

    transformer: dict[str, Any]
    """Configuration of its ``WanTransformer3DModel``."""
    temporal: int = 4
    """Frames in one latent frame, after the first."""
    spatial: int = 8
    """Pixels in one latent pixel, each way."""

    @property
    def text_width(self) -> int:
        """Width of a prompt embedding."""
        return self.transformer.get("text_dim", 4096)

    @property
    def blocks(self) -> int:
        """Blocks of the transformer."""
        return self.transformer.get("num_layers", 40)

    def latent(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape ``(C, F, H, W)`` of the latent of a video.

        Raises:
            ValueError: the video does not divide into latents and patches, or has more of them than positions.
        """
        patch_f, patch_h, patch_w = self.transformer.get("patch_size", (1, 2, 2))
        tall, wide = self.spatial * patch_h, self.spatial * patch_w
        size = (frames - 1) // self.temporal + 1, height // self.spatial, width // self.spatial
        if (
            min(frames, height, width) < 1
            or (frames - 1) % self.temporal
            or size[0] % patch_f
            or height % tall
            or width % wide
        ):
            least = (patch_f - 1) * self.temporal + 1
            raise ValueError(
                f"{frames} frames of {height}x{width} do not fit: frames must be {least} plus a multiple of "
                f"{patch_f * self.temporal}, height a multiple of {tall}, width of {wide}"
            )
        most = self.transformer.get("rope_max_seq_len", 1024)
        if max(size[0] // patch_f, height // tall, width // wide) > most:
            raise ValueError(
                f"{frames} frames of {height}x{width} are too large: this model has positions for "
                f"{(most * patch_f - 1) * self.temporal + 1} frames of {most * tall}x{most * wide}"
            )
        return (self.transformer.get("in_channels", 16), *size)

    def meta_network(self) -> nn.Module:
        """The transformer on the meta device: sizes without numbers."""
        from diffusers import WanTransformer3DModel

        with torch.device("meta"):
            return WanTransformer3DModel(**self.transformer).eval()


def _known(name: str) -> Architecture:
    parts = known.parts(name)
    temporal, spatial = (parts["vae"][f"scale_factor_{way}"] for way in ("temporal", "spatial"))
    return Architecture(transformer=parts["transformer"], temporal=temporal, spatial=spatial)


KNOWN = {name: _known(name) for name in known.names() if "transformer" in known.parts(name)}
"""Sizes by hub id."""


def architecture(pipe: Any) -> Architecture:
    """Sizes of a loaded ``WanPipeline``."""
    config = {key: value for key, value in pipe.transformer.config.items() if not key.startswith("_")}
    return Architecture(
        transformer=config, temporal=pipe.vae_scale_factor_temporal, spatial=pipe.vae_scale_factor_spatial
    )


def architecture_of_folder(folder: Path) -> Architecture:
    """Sizes of a Wan pipeline folder, from its configuration files alone.

    Raises:
        BadFileError: a configuration is missing or damaged.
    """
    vae = _config(folder / "vae") if (folder / "vae").is_dir() else {}
    return Architecture(
        transformer=_config(folder / "transformer"),
        temporal=vae.get("scale_factor_temporal", 4),
        spatial=vae.get("scale_factor_spatial", 8),
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_text(folder / "config.json"))
        return {key: value for key, value in config.items() if not key.startswith("_")}
    except (ValueError, AttributeError) as error:
        raise BadFileError(f"{folder / 'config.json'} is damaged: {error}") from error


def tiny(*, seed: int = 0, **overrides: Any) -> Any:
    """A random ``WanTransformer3DModel`` of 2 layers, width 24, 2 heads, 3 channels and text width 8, in eval mode.

    It takes latents ``[B, 3, F, H, W]`` with even ``H`` and ``W``, and conditions ``[B, T, 8]``.

    Args:
        seed: of the weights; the global generator is left as it was.
        overrides: fields of its configuration.
    """
    from diffusers import WanTransformer3DModel

    fields = {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "ffn_dim": 32,
        "in_channels": 3,
        "out_channels": 3,
        "text_dim": TEXT_WIDTH,
        "freq_dim": 16,
        "rope_max_seq_len": 16,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel(**{**fields, **overrides}).eval()


def tiny_pipeline(*, seed: int = 0, **overrides: Any) -> Any:
    """A random ``WanPipeline`` of real classes around `tiny`; clips are multiples of 16 pixels.

    The tokenizer knows the words of `WORDS`; the VAE shrinks space by 8 and time by 4.

    Args:
        seed: of the weights; the global generator is left as it was.
        overrides: fields of the transformer's configuration.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    text = UMT5Config(vocab_size=len(WORDS), d_model=TEXT_WIDTH, d_kv=4, d_ff=32, num_layers=1, num_heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = UMT5EncoderModel(text).eval()
    pipe = WanPipeline(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"),
        text_encoder=encoder,
        vae=wan_vae.tiny(seed=seed),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=tiny(seed=seed, **overrides),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
