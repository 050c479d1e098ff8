"""Files of weights: students as they are saved here, and checkpoints of the authors' code, both ways.

Nothing is unpickled. Shapes and names of the authors' classes are those of their inference code for Wan 2.1.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fewstep.errors import BadFileError, UnsupportedModelError
from fewstep.families import wan_vae
from torch import Tensor

from .decoder import WanDecoder
from .layers import FrameConv, Residual, Separable

_RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file, or with another ending a state dict that torch saved; no code of it runs.

    Raises:
        BadFileError: it cannot be read, or is no mapping from names to tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if (
            file.suffix == ".safetensors"
        ):  # from bytes: reading a file, safetensors 0.8 keeps two numbers of each tensor
            return load(file.read_bytes())
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise BadFileError(f"{file} cannot be read as weights (damaged?): {str(error).splitlines()[0]}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise BadFileError(f"{file} is no state dict: a mapping from names to tensors")
    return tensors


def load(student: WanDecoder, file: Path, names: Mapping[str, str] | None = None) -> None:
    """Read a student's weights; none may be missing or left over.

    Args:
        student: its weights are overwritten.
        file: see `read_tensors`.
        names: name in the file of each weight, where it is another; other weights of the file are then allowed outside
            of the decoder, and shapes may differ by dimensions of size 1.

    Raises:
        BadFileError: the file is damaged, or holds the weights of another student.
    """
    tensors, wanted = read_tensors(file), student.state_dict()
    if names is not None:
        tensors = {name: value for name, value in tensors.items() if name.startswith(("decoder.", "conv2."))}
        wanted = {names[name]: value for name, value in wanted.items()}
        same = {name for name in wanted.keys() & tensors.keys() if tensors[name].numel() == wanted[name].numel()}
        tensors |= {name: tensors[name].view_as(wanted[name]) for name in same}
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape)
    if missing or extra or other:
        raise BadFileError(
            f"{file} holds another student: {len(missing)} weights are missing, {len(extra)} too many, {len(other)} of "
            f"another shape, for example {(missing or extra or other)[0]}"
        )
    if bad := [name for name, value in tensors.items() if not torch.isfinite(value).all()]:
        raise BadFileError(f"{file} has weights that are not finite, for example {bad[0]}")
    student.load_state_dict({ours: tensors[names[ours] if names else ours] for ours in student.state_dict()})


def save(weights: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file that appears complete; its folder is made where it does not exist."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    save_file({name: value.contiguous().cpu() for name, value in weights.items()}, part)
    os.replace(part, file)


def official_names(student: WanDecoder) -> dict[str, str]:
    """The authors' name of each weight by ours, in the order of the student."""
    layers = {"post_quant_conv": "conv2", "decoder.conv_in": "decoder.conv1"}
    layers |= {"decoder.norm_out": "decoder.head.0", "decoder.conv_out": "decoder.head.2"}
    for ours, number in (("resnets.0", 0), ("attentions.0", 1), ("resnets.1", 2)):
        layers[f"decoder.mid_block.{ours}"] = f"decoder.middle.{number}"
    number = 0
    for index, stage in enumerate(student.shape.stages):
        ups = ["upsamplers.0"] if stage.up else []
        for part in [*(f"resnets.{block}" for block in range(stage.blocks)), *ups]:
            layers[f"decoder.up_blocks.{index}.{part}"] = f"decoder.upsamples.{number}"
            number += 1
    return {name: _official_name(name, layers) for name in student.state_dict()}


def _official_name(name: str, layers: Mapping[str, str]) -> str:
    layer = max((layer for layer in layers if name.startswith(f"{layer}.")), key=len)
    first, _, rest = name.removeprefix(f"{layer}.").partition(".")
    inner = ".".join(filter(None, (_RESIDUAL.get(first, first) if "resnets" in layer else first, rest)))
    for part in ("depthwise", "pointwise"):
        inner = inner.replace(f".{part}.", f".{part}_conv.")
    return f"{layers[layer]}.{inner}"


def to_official(student: WanDecoder) -> dict[str, Tensor]:
    """The student's weights as the authors' classes name and shape them.

    Raises:
        UnsupportedModelError: it pools the keys of its attention, which their code does not.
    """
    if student.shape.pool > 1:
        raise UnsupportedModelError("the authors' code attends to every pixel: a student with pool > 1 stays here")
    weights = student.state_dict()
    for block, part in student.named_modules():
        if isinstance(part, Residual) and isinstance(part.conv1, FrameConv):
            for gamma in (f"{block}.norm1.gamma", f"{block}.norm2.gamma"):
                weights[gamma] = weights[gamma].view(-1, 1, 1)  # their frame blocks normalise images, not clips
    return {theirs: weights[ours].contiguous() for ours, theirs in official_names(student).items()}


@dataclass(frozen=True, kw_only=True)
class OfficialExport:
    """A student as the authors' code names its weights, in one safetensors file."""

    file: str = "Flash_VAED_Wan.safetensors"
    """Name of the file in the folder."""
    model: str = "clips-wan-vae"
    """The VAE that the student belongs to: its configuration says what is exported."""

    def __call__(self, method: Any, folder: Path) -> list[str]:
        """Write the file; returns notes for the user.

        Raises:
            UnsupportedModelError: the student is of another VAE, or has what their code has not.
        """
        import fewstep

        student = method.student(wan_vae.check(fewstep.load(self.model).model).config)
        save(to_official(student), folder / self.file)
        separable = any(isinstance(part, Separable) for part in student.modules())
        note = "" if separable else "; it has no separable convolutions, which their classes expect"
        return [f"{self.file}: {len(student.state_dict())} weights, none of the encoder{note}"]
