"""`FlashVAED`: a pruned and distilled decoder for a Wan VAE. `ExactDecode`: the unchanged one, computed faster."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

from fewstep import hub
from fewstep.cards import Card
from fewstep.errors import UnsupportedModelError
from fewstep.families import wan_vae
from fewstep.method import Method

from . import weights as weight_files
from .decoder import WanDecoder, decoder_shape
from .decoding import DecodingApplied, SharedDecoder, StudentDecoder, students
from .layers import Operator

SEAM = "vae-decoder"
MOST_POOLED = 256
"""Rows and columns that a key may stand for: more than the latents of any video have."""


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
        with DecodingApplied() as undo:
            undo.needs_weights(vae.decoder, self)
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
        if not 1 <= self.pool <= MOST_POOLED:
            raise ValueError(f"pool={self.pool}: a key stands for at least one row and column, at most {MOST_POOLED}")

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
            undo.callback(students.pop, vae)
            students[vae] = student
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
