"""Checkpoints of the authors' code: their names of weights, read without unpickling, and written."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from fewstep.errors import BadFileError, UnsupportedModelError
from torch import Tensor

from .decoder import WanDecoder
from .layers import Separable

_RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}


def names(student: WanDecoder) -> dict[str, str]:
    """Our name of each weight to theirs, in the order of the student."""
    modules = {"post_quant_conv": "conv2", "decoder.conv_in": "decoder.conv1"}
    for ours, theirs in (("resnets.0", "middle.0"), ("attentions.0", "middle.1"), ("resnets.1", "middle.2")):
        modules[f"decoder.mid_block.{ours}"] = f"decoder.{theirs}"
    number = 0
    for index, stage in enumerate(student.spec.stages):
        for block in range(stage.blocks):
            modules[f"decoder.up_blocks.{index}.resnets.{block}"] = f"decoder.upsamples.{number}"
            number += 1
        if stage.up:
            modules[f"decoder.up_blocks.{index}.upsamplers.0"] = f"decoder.upsamples.{number}"
            number += 1
    modules |= {"decoder.norm_out": "decoder.head.0", "decoder.conv_out": "decoder.head.2"}
    return {name: _translated(name, modules) for name in student.state_dict()}


def _translated(name: str, modules: Mapping[str, str]) -> str:
    ours = max((module for module in modules if name.startswith(f"{module}.")), key=len)
    first, _, rest = name.removeprefix(f"{ours}.").partition(".")
    inner = {**_RESIDUAL, "conv_shortcut": "shortcut"}.get(first, first) if "resnets" in ours else first
    inner = f"{inner}.{rest}" if rest else inner
    for part in ("depthwise", "pointwise"):
        inner = inner.replace(f".{part}.", f".{part}_conv.")
    return f"{modules[ours]}.{inner}"


def to_official(student: WanDecoder) -> dict[str, Tensor]:
    """The student's weights by their names.

    Raises:
        UnsupportedModelError: it pools the keys of its attention, which their code does not.
    """
    if student.spec.pool > 1:
        raise UnsupportedModelError("the authors' code attends to every pixel: a student with pool > 1 stays here")
    table = names(student)
    return {table[name]: value.contiguous() for name, value in student.state_dict().items()}


def load_official(student: WanDecoder, checkpoint: Path) -> None:
    """Read one of their checkpoints; decoder weights must all be there, encoder weights are left out.

    Raises:
        BadFileError: it cannot be read without running code, or does not fit the student.
    """
    found = _read(checkpoint)
    table = {theirs: ours for ours, theirs in names(student).items()}
    wanted = student.state_dict()
    mine = {name: value for name, value in found.items() if name.startswith(("decoder.", "conv2."))}
    missing, extra = sorted(table.keys() - mine.keys()), sorted(mine.keys() - table.keys())
    other = [name for name in table.keys() & mine.keys() if mine[name].numel() != wanted[table[name]].numel()]
    if missing or extra or other:
        example = (missing or extra or other)[0]
        raise BadFileError(
            f"{checkpoint} is no Flash-VAED decoder of this shape: {len(missing)} weights are missing, "
            f"{len(extra)} too many, {len(other)} of another size, for example {example}"
        )
    student.load_state_dict({ours: mine[theirs].view_as(wanted[ours]) for theirs, ours in table.items()})


def _read(checkpoint: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if checkpoint.suffix == ".safetensors":
            return load_file(checkpoint)
        found = torch.load(checkpoint, map_location="cpu", weights_only=True)  # tensors only, no code
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise BadFileError(f"{checkpoint} cannot be read as weights: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise BadFileError(f"{checkpoint} is no state dict: a mapping from names to tensors")
    return found


@dataclass(frozen=True, kw_only=True)
class Export:
    """A student as the authors' code names its weights, in one safetensors file."""

    file: str = "Flash_VAED_Wan.safetensors"
    """Name of the file in the folder."""
    model: str = "clips-wan-vae"
    """The VAE that the student belongs to: its configuration says what is exported."""

    def __call__(self, method: object, folder: Path) -> list[str]:
        """Write the file; returns notes for the user."""
        import fewstep
        from fewstep.families import wan_vae
        from safetensors.torch import save_file

        from .method import FlashVAED

        assert isinstance(method, FlashVAED)
        vae = wan_vae.check(fewstep.load(self.model).model)
        student = method.student(vae.config)
        weights = to_official(student)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / self.file)
        separable = any(isinstance(part, Separable) for part in student.modules())
        note = "" if separable else "; it has no separable convolutions, which their classes expect"
        return [f"{self.file}: {len(student.state_dict())} weights, none of the encoder{note}"]
