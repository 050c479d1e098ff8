"""Stages that keep their width while a decoder is pruned: weights copied, operators replaced and fitted to features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .causal import Frames
from .layers import Frame, Residual, Separable
from .operators import conv3d_to_2d, conv3d_to_dw, fit_separable

Clips = list[Frames]


def early(teacher: Any, student: Any, x: Clips, propagate: bool) -> tuple[Clips, Clips]:
    """Input convolution and middle block; features of the teacher and the student."""
    copy(student.conv_in, teacher.conv_in)
    _convert(teacher.mid_block, student.mid_block)
    x = ours = [teacher.conv_in(clip) for clip in x]
    (first, second), attention = teacher.mid_block.resnets, teacher.mid_block.attentions[0]
    x, ours = _full(first, student.mid_block.resnets[0], x, ours, propagate)
    x, ours = [attention(clip) for clip in x], [student.mid_block.attentions[0](clip) for clip in ours]
    return _full(second, student.mid_block.resnets[1], x, ours, propagate)


def wide(source: Any, target: Any, x: Clips, ours: Clips, propagate: bool) -> tuple[Clips, Clips]:
    """An up-block that keeps its width: features of the teacher behind it, of the student before its resampler."""
    _convert(source, target)
    for old, new in zip(source.resnets, target.resnets, strict=True):
        x, ours = _full(old, new, x, ours, propagate)
    return (x if source.upsamplers is None else [source.upsamplers[0](clip) for clip in x]), ours


def _full(old: Any, new: Any, x: Clips, ours: Clips, propagate: bool) -> tuple[Clips, Clips]:
    """A residual block; with `propagate` separable convolutions are regressed on the student's own features."""
    inner = [old.conv1(old.norm1(clip)) for clip in x]
    out = [old.conv2(old.norm2(clip)) + old.conv_shortcut(by) for clip, by in zip(inner, x, strict=True)]
    if propagate and isinstance(new.conv1, Separable):
        hidden = _separate(new.conv1, [new.norm1(clip) for clip in ours], inner)
        lacking = [clip - new.conv_shortcut(by) for clip, by in zip(out, ours, strict=True)]
        _separate(new.conv2, [new.norm2(clip) for clip in hidden], lacking)
    return out, [new(clip) for clip in ours]


def _separate(conv: Separable, x: Clips, wanted: Clips) -> Clips:
    """Let a separable convolution come close to what is wanted; it starts with the weights that it has."""
    depthwise, pointwise, bias = fit_separable(x, wanted, conv.depthwise.weight)
    conv.depthwise.weight.copy_(depthwise)
    conv.pointwise.weight.copy_(pointwise)
    conv.pointwise.bias.copy_(bias)
    return [conv(clip) for clip in x]


def resampled(block: Any, x: Clips, ours: Clips | None, kept: Tensor | None) -> Clips:
    """Features behind the resampler of a block: the student's, or the teacher's kept ones where those are to go on."""
    if ours is None:
        return x if kept is None else [clip[:, :, kept] for clip in x]
    return [block.upsamplers[0](clip) for clip in ours]


def _convert(source: nn.Module, target: nn.Module) -> None:
    """Copy weights, replacing operators where the target has others."""
    for theirs, ours in zip(_residuals(source), _residuals(target), strict=True):
        set_operator(ours.conv1, theirs.conv1.weight, theirs.conv1.bias)
        set_operator(ours.conv2, theirs.conv2.weight, theirs.conv2.bias)
        past = theirs.conv_shortcut
        if isinstance(past, nn.Identity) and not isinstance(ours.conv_shortcut, nn.Identity):
            same = torch.eye(len(theirs.conv2.bias), device=theirs.conv2.bias.device)[:, :, None, None, None]
            set_operator(ours.conv_shortcut, same, same.new_zeros(len(same)))
        elif not isinstance(past, nn.Identity):
            set_operator(ours.conv_shortcut, past.weight, past.bias)
    known = source.state_dict()
    own = {n: known[n] for n, old in target.state_dict().items() if n in known and known[n].shape == old.shape}
    target.load_state_dict(own, strict=False)


def _residuals(module: nn.Module) -> list[Any]:
    return [block for block in module.modules() if isinstance(block, Residual)]


def set_operator(target: Any, weight: Tensor, bias: Tensor) -> None:
    """Give a convolution of any operator the weights closest to a dense kernel ``[o, c, 3, 3, 3]`` (or 1x1x1)."""
    if isinstance(target, Separable):
        if weight.shape[-1] == 1:
            depthwise, pointwise = torch.ones_like(target.depthwise.weight), weight
        else:
            depthwise, pointwise = conv3d_to_dw(weight)
        target.depthwise.weight.copy_(depthwise)
        target.depthwise.bias.zero_()
        target.pointwise.weight.copy_(pointwise)
        target.pointwise.bias.copy_(bias)
        return
    collapsed = conv3d_to_2d(weight) if isinstance(target, Frame) else weight
    target.weight.copy_(collapsed.view_as(target.weight))
    target.bias.copy_(bias)


def copy(target: nn.Module, source: nn.Module) -> None:
    """All weights of a module of the same shape."""
    target.load_state_dict(source.state_dict())
