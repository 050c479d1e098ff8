"""`FlashVAED`: a pruned and distilled decoder for a Wan VAE. `ExactDecode`: the unchanged one, computed faster."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, get_args
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from fewstep import hub
from fewstep.applied import Applied
from fewstep.cards import Card
from fewstep.errors import UnsupportedModelError
from fewstep.families import wan_vae
from fewstep.families.wan_vae import Clip
from fewstep.method import Method
from torch import Tensor

from . import weights as weight_files
from .decoder import WanDecoder, decoder_shape, exact_decoder
from .layers import Memory, Operator

SEAM = "vae-decoder"
DecoderFor = Callable[[Tensor], WanDecoder]
"""Gives the decoder at its newest: on the device and in the dtype of these latents, with the VAE's present weights."""


class ClipStream:
    """Decoding of one clip chunk by chunk; the frames are those of the whole clip, whatever the chunks.

    ::

        stream = applied.stream()
        frames = stream.push(latents[:, :, :3])      # 1 + s_t (3 - 1) frames at first, then s_t for each latent
        stream.close()
    """

    def __init__(self, decoder_for: DecoderFor) -> None:
        self.decoder_for = decoder_for
        self.memory: Memory = {}
        self.shape: tuple[int, ...] | None = None
        self.closed = False

    @torch.no_grad()
    def push(self, latents: Clip) -> Clip:
        """Frames ``[B, 3, F, H, W]`` of the next latents, not normalised, from -1 to 1.

        Raises:
            ValueError: the stream is closed, or the latents have another size than the ones before.
        """
        if self.closed:
            raise ValueError("this stream is closed: start another one for another clip")
        shape = (latents.shape[0], *latents.shape[3:])
        if self.shape not in (None, shape):
            raise ValueError(f"this stream decodes latents [b, z, t, h, w] with b, h, w = {self.shape}, found {shape}")
        frames = self.decoder_for(latents)(latents, self.memory).clamp(-1, 1)
        self.shape = shape
        return frames

    def close(self) -> None:
        """Forget the clip. Calling it again does nothing."""
        self.memory.clear()
        self.closed = True


class DecodingApplied(Applied):
    """Undo stack of both methods here; starts streams while it is applied."""

    decoder_for: DecoderFor

    def stream(self) -> ClipStream:
        """Start a stream of one clip; streams do not know of each other."""
        return ClipStream(self.decoder_for)

    def redirect(self, vae: Any, decoder_for: DecoderFor, chunk: int) -> DecodingApplied:
        """Let `vae` decode with this decoder, `chunk` latents at once (0: all), and hand the stack to the caller."""
        for name in ("_decode", "tiled_decode"):
            self.set(vae, name, partial(_decode_whole, name, vae, decoder_for, chunk))
        applied = self.pop_all()
        applied.decoder_for = decoder_for
        return applied


class SharedDecoder:
    """The exact decoder on a VAE's own weights, made anew when they are other tensors than before."""

    def __init__(self, vae: Any) -> None:
        self.vae, self.known = vae, (self._weights(vae), exact_decoder(vae))

    def __call__(self, latents: Tensor) -> WanDecoder:
        """Return the decoder; moves, casts and loaded state dicts of the VAE have reached it."""
        weights, (seen, decoder) = self._weights(self.vae), self.known
        if len(weights) != len(seen) or any(a is not b for a, b in zip(weights, seen, strict=True)):
            decoder = exact_decoder(self.vae)
            self.known = weights, decoder
        return decoder

    @staticmethod
    def _weights(vae: Any) -> list[Tensor]:
        return [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]


class StudentDecoder:
    """A student beside the VAE, whose state dict and files stay its own; a copy goes where latents come from."""

    def __init__(self, student: WanDecoder) -> None:
        self.student = self.latest = student.eval().requires_grad_(False)

    def __call__(self, latents: Tensor) -> WanDecoder:
        """Return the student on the device and in the dtype of `latents`."""
        decoder = self.latest
        weight = next(decoder.parameters())
        if (weight.device, weight.dtype) != (latents.device, latents.dtype):
            decoder = self.latest = copy.deepcopy(self.student).to(latents.device, latents.dtype)
        return decoder


_students: WeakKeyDictionary[Any, WanDecoder] = WeakKeyDictionary()


def student_of(vae: Any) -> WanDecoder | None:
    """The student that decodes in the place of this VAE's own decoder, if one is applied."""
    return _students.get(vae)


class _WholeClip:
    """An ``AutoencoderKLWan`` as its own ``_decode`` and ``tiled_decode`` see it while they decode a whole clip.

    They loop over frames. Here the clip is one frame, whose channels are those of all frames: what they do besides
    (tiles, blending, clamping) stays theirs.
    """

    _feat_map = None

    def __init__(self, vae: Any, decoder: WanDecoder, chunk: int, channels: int) -> None:
        self.vae, self.whole, self.chunk, self.channels = vae, decoder, chunk, channels

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vae, name)

    def tiled_decode(self, folded: Tensor, return_dict: bool = True) -> Any:
        return type(self.vae).tiled_decode(self, folded, return_dict)

    def clear_cache(self) -> None:
        """Do nothing: memory is this call's."""

    def post_quant_conv(self, folded: Tensor) -> Tensor:
        """Do nothing: the decoder has its own."""
        return folded

    def decoder(self, folded: Tensor, **_: Any) -> Clip:
        """Pixels of a whole clip or tile, `chunk` latent frames at once."""
        latents = rearrange(folded, "b (z t) 1 h w -> b z t h w", z=self.channels)
        if not self.chunk:
            return self.whole(latents)
        memory: Memory = {}
        return torch.cat([self.whole(part, memory) for part in latents.split(self.chunk, 2)], 2)


def _decode_whole(name: str, vae: Any, decoder_for: DecoderFor, chunk: int, z: Clip, return_dict: bool = True) -> Any:
    """Take the place of ``vae._decode`` and ``vae.tiled_decode``, here `name`."""
    clip = _WholeClip(vae, decoder_for(z), chunk, z.shape[1])
    return getattr(type(vae), name)(clip, rearrange(z, "b z t h w -> b (z t) 1 h w"), return_dict)


@dataclass(frozen=True, kw_only=True)
class ExactDecode(Method):
    """Decode with the VAE's own weights, the whole clip at once and without ``conv3d``; needs no training.

    On a CPU a causal 3-D convolution is computed as 2-D ones of channels-last frames, norm and activation in a
    fraction of the time, upsampling as four small convolutions. The result differs from diffusers' only in the order
    of sums. It is the baseline that students are measured against; after the notes on arXiv:2602.19161.

    Raises:
        ValueError: `chunk` is negative.
    """

    name: ClassVar[str] = "exact-decode"
    seams: ClassVar[frozenset[str]] = frozenset({SEAM})

    chunk: int = 0
    """Latent frames that are decoded at once: memory no longer grows with the clip. 0: all of them."""

    def __post_init__(self) -> None:
        if self.chunk < 0:
            raise ValueError(f"chunk={self.chunk}: latent frames at once are 1 or more, or 0 for all")

    def identity(self) -> Self:
        """Return itself: outputs equal those of the unchanged VAE but for rounding."""
        return self

    def apply(self, model: Any) -> DecodingApplied:
        """Change a loaded ``AutoencoderKLWan``, or the one of a pipeline; ``vae.decode`` keeps its contract.

        Raises:
            UnsupportedModelError: there is none, or it is like Wan 2.2's.
            SeamConflictError: its decoder is replaced already.
        """
        vae = wan_vae.check(model)
        if any(weight.is_meta for weight in vae.decoder.parameters()):
            raise UnsupportedModelError(
                f"the weights of this {type(vae).__name__} are offloaded layer by layer, and {self.name} reads them "
                "past the hooks that fetch them: remove the offloading, or move the VAE as a whole"
            )
        with DecodingApplied() as undo:
            undo.occupy(vae, self)
            return undo.redirect(vae, SharedDecoder(vae), self.chunk)


@dataclass(frozen=True, kw_only=True)
class FlashVAED(Method):
    """Replace the decoder of a Wan VAE by a narrow student with cheaper operators (Flash-VAED, arXiv:2602.19161).

    Encoder, latents and diffusion model stay as they are. A student belongs to one VAE: `fewstep fit flash-vaed` prunes
    it, `fewstep train flash-vaed-clips` distils it.

    Raises:
        ValueError: a field is out of range.
    """

    name: ClassVar[str] = "flash-vaed"
    seams: ClassVar[frozenset[str]] = frozenset({SEAM})
    formats: ClassVar[tuple[Card, ...]] = (
        Card(
            name="official",
            summary="the state dict of the authors' code, as safetensors (Wan 2.1's four up-blocks only)",
            target="fewstep_flash_vaed.weights:OfficialExport",
            models=("AutoencoderKLWan",),
        ),
    )

    operators: tuple[Operator, ...] = ()
    """Convolutions of middle block and up-blocks: ``dense``, ``separable`` or ``frame``. Empty: all dense."""
    widths: tuple[int, ...] = ()
    """Channels of each up-block; 0 for as many as the teacher has. Empty: all of them."""
    pool: int = 1
    """Ours: each key and value of the attention is the mean of so many rows and columns; 1: one for each pixel."""
    teacher: str = ""
    """Fingerprint of the latents of the VAE it was made for; another VAE is refused. Empty: any that fits."""
    weights: Path | None = hub.weights()
    """The student's weights."""

    def __post_init__(self) -> None:
        if set(self.operators) - set(get_args(Operator)):
            raise ValueError(f"operators={self.operators}: there are dense, separable and frame")
        if any(width < 0 for width in self.widths):
            raise ValueError(f"widths={self.widths}: channels are 0 (all) or more")
        if self.pool < 1:
            raise ValueError(f"pool={self.pool}: a key stands for at least one row and column")

    def student(self, config: Any) -> WanDecoder:
        """The student for a VAE with this configuration, on the CPU in float32.

        Raises:
            UnsupportedModelError: the student has no weights, or belongs to a VAE of another shape or training.
            BadFileError: its file is damaged or lacks weights.
            ValueError: operators or widths do not fit this VAE.
        """
        if self.teacher and self.teacher != (fingerprint := wan_vae.latents_fingerprint(config)):
            raise UnsupportedModelError(
                f"this student decodes latents of another VAE ({self.teacher}), not of this one ({fingerprint})"
            )
        if self.weights is None:
            raise UnsupportedModelError(
                "this flash-vaed has no weights: make a student with `fewstep fit flash-vaed --model VAE --out OUT`, "
                "or load one with FlashVAED.from_pretrained"
            )
        student = WanDecoder(decoder_shape(config, self.operators, self.widths, self.pool))
        weight_files.load(student, self.weights)
        return student

    def apply(self, model: Any) -> DecodingApplied:
        """Change a loaded ``AutoencoderKLWan``, or the one of a pipeline; ``vae.decode`` keeps its contract.

        Raises:
            UnsupportedModelError: there is none, or see `student`.
            BadFileError: see `student`.
            ValueError: see `student`.
            SeamConflictError: its decoder is replaced already.
        """
        vae = wan_vae.check(model)
        student = self.student(vae.config)
        with DecodingApplied() as undo:
            undo.occupy(vae, self)
            undo.callback(_students.pop, vae)
            _students[vae] = student
            return undo.redirect(vae, StudentDecoder(student), 0)


def save_student(student: WanDecoder, folder: Path, teacher: str) -> FlashVAED:
    """Write a student to `folder`, made where it does not exist, and return the method that uses it.

    Args:
        student: its weights are saved in float32.
        folder: gets ``weights.safetensors`` and ``fewstep.json``.
        teacher: fingerprint of the latents of the VAE that it belongs to.
    """
    file = folder / "weights.safetensors"
    weight_files.save({name: value.float() for name, value in student.state_dict().items()}, file)
    method = dataclasses.replace(FlashVAED(**student.shape.fields(), teacher=teacher), weights=file)
    hub.save(method, folder, files={"weights": file.name})
    return method
