"""`FlashVAED`: a pruned and distilled decoder for a Wan VAE. `ExactDecode`: the unchanged one, computed faster."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from fewstep import hub
from fewstep.cards import Card
from fewstep.errors import BadFileError, UnsupportedModelError
from fewstep.families import wan_vae
from fewstep.method import Method

from .decoder import WanDecoder, spec_of
from .install import Decoding, exact_decoding, student_decoding
from .layers import Operator

SEAM = "vae-decoder"


@dataclass(frozen=True, kw_only=True)
class ExactDecode(Method):
    """Decode with the VAE's own weights, the whole clip at once and without ``conv3d``; needs no training.

    On a CPU a causal 3-D convolution is computed as 2-D ones of channels-last frames, norm and activation in a
    fraction of the time, upsampling as four small convolutions. The result differs from diffusers' only in the order
    of sums. It is the baseline that students are measured against; after the notes on arXiv:2602.19161.
    """

    name: ClassVar[str] = "exact-decode"
    seams: ClassVar[frozenset[str]] = frozenset({SEAM})

    chunk: int = 0
    """Latent frames that are decoded at once: memory no longer grows with the clip. 0: all of them."""

    def __post_init__(self) -> None:
        if self.chunk < 0:
            raise ValueError(f"chunk={self.chunk}: latent frames at once are 1 or more, or 0 for all")

    def identity(self) -> Self:
        """Itself: outputs equal those of the unchanged VAE but for rounding."""
        return self

    def apply(self, model: Any) -> Decoding:
        """Change a loaded ``AutoencoderKLWan``, or the one of a pipeline."""
        return exact_decoding(wan_vae.check(model), self, self.chunk)


@dataclass(frozen=True, kw_only=True)
class FlashVAED(Method):
    """Replace the decoder of a Wan VAE by a narrow student with cheaper operators (Flash-VAED, arXiv:2602.19161).

    Encoder, latents and diffusion model stay as they are. A student belongs to one VAE: `fewstep fit flash-vaed` prunes
    it, `fewstep train flash-vaed-clips` distils it.

    Raises:
        ValueError: the fields do not fit each other.
    """

    name: ClassVar[str] = "flash-vaed"
    seams: ClassVar[frozenset[str]] = frozenset({SEAM})
    formats: ClassVar[tuple[Card, ...]] = (
        Card(
            name="official",
            summary="the state dict of the authors' code, as safetensors (Wan 2.1's four up-blocks only)",
            target="fewstep_flash_vaed.official:Export",
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
    """Which VAE it was made for, see `fingerprint`; another one is refused. Empty: any that fits."""
    weights: Path | None = hub.weights()
    """The student's weights."""

    def __post_init__(self) -> None:
        for operator in self.operators:
            if operator not in ("dense", "separable", "frame"):
                raise ValueError(f"operators={self.operators}: there are dense, separable and frame")
        if any(width < 0 for width in self.widths):
            raise ValueError(f"widths={self.widths}: channels are 0 (all) or more")
        if self.pool < 1:
            raise ValueError(f"pool={self.pool}: a key stands for at least one row and column")

    def student(self, config: Any) -> WanDecoder:
        """The student for a VAE with this configuration, on the CPU in float32.

        Raises:
            UnsupportedModelError: the student has no weights, or belongs to a VAE of another shape.
            BadFileError: its file is damaged or lacks weights.
            ValueError: operators or widths do not fit this VAE.
        """
        if self.weights is None:
            raise UnsupportedModelError(
                "this flash-vaed has no weights: make a student with `fewstep fit flash-vaed --model VAE --out OUT`, "
                "or load one with FlashVAED.from_pretrained"
            )
        student = WanDecoder(spec_of(config, self.operators, self.widths, self.pool))
        load(student, self.weights)
        return student

    def apply(self, model: Any) -> Decoding:
        """Change a loaded ``AutoencoderKLWan``, or the one of a pipeline; ``vae.decode`` keeps its contract."""
        vae = wan_vae.check(model)
        if self.teacher and self.teacher != (found := fingerprint(vae.config)):
            raise UnsupportedModelError(
                f"this student decodes latents of another VAE ({self.teacher}), not of this one ({found})"
            )
        return student_decoding(vae, self, self.student(vae.config))

    @classmethod
    def fit(cls, model: Any, data: Any, *, out: Path, **options: Any) -> FlashVAED:
        """Prune a student of the decoder of `model`; see `fewstep_flash_vaed.fit.fit`."""
        from .fit import fit

        return fit(wan_vae.check(model), data, out=out, **options)


def fingerprint(config: Any) -> str:
    """Shape and statistics of a VAE's latents in a few words: those of two trainings differ."""
    import hashlib

    statistics = hashlib.sha256(repr((list(config.latents_mean), list(config.latents_std))).encode()).hexdigest()[:8]
    return f"z{config.z_dim}-{config.base_dim}x{'.'.join(map(str, config.dim_mult))}-{statistics}"


def load(student: WanDecoder, file: Path) -> None:
    """Read a student's weights; none may be missing or left over.

    Raises:
        BadFileError: the file is damaged, or holds the weights of another student.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(file)
    except (SafetensorError, OSError) as error:
        raise BadFileError(f"{file} is damaged ({error}): make or download it again") from error
    wanted = student.state_dict()
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = [name for name in wanted.keys() & found.keys() if wanted[name].shape != found[name].shape]
    if missing or extra or other:
        example = (missing or extra or sorted(other))[0]
        raise BadFileError(
            f"{file} holds another student: {len(missing)} weights are missing, {len(extra)} too many, {len(other)} of "
            f"another shape, for example {example}"
        )
    if bad := [name for name, value in found.items() if not torch.isfinite(value).all()]:
        raise BadFileError(f"{file} has weights that are not finite, for example {bad[0]}")
    student.load_state_dict(found)


def save(student: WanDecoder, folder: Path, fields: dict[str, Any]) -> FlashVAED:
    """Write a student to `folder` and return the method that uses it.

    Args:
        student: its weights are saved in float32.
        folder: made where it does not exist; the file appears complete.
        fields: operators, widths, pool and teacher.
    """
    import os

    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    part = folder / ".weights.safetensors.part"
    save_file({k: v.float().contiguous().cpu() for k, v in student.state_dict().items()}, part)
    os.replace(part, folder / "weights.safetensors")
    method = dataclasses.replace(FlashVAED(**fields), weights=folder / "weights.safetensors")
    hub.save(method, folder, files={"weights": "weights.safetensors"})
    return method
