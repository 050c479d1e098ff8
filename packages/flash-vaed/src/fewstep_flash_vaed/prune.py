"""From a trained decoder to its student before distillation: channels chosen, operators replaced, weights regressed.

Teacher and student run side by side over calibration clips, layer by layer, so that each regression sees what the
layers before it really give (procedure P1 of the method's card; arXiv:2602.19161, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from .causal import Frames
from .decoder import Clip, WanDecoder
from .layers import Causal, Frame, Norm, Residual, Separable, channels_last
from .operators import LeastSquares, conv3d_to_2d, conv3d_to_dw, fit_separable, fold_consumer
from .select import Moments, Score, Select, pca_bound, r2, rows, select_channels

Recovery = Literal["propagate", "fold", "slice"]
"""Consumers are regressed on the student's own features, on the teacher's kept ones, or only cut to size."""
Clips = list[Frames]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen at one point of the decoder."""

    point: str
    """``up2.0.inner``: block 0 of up-block 2, behind its first convolution; ``up2.0``: its output; ``up2.in``."""
    kept: tuple[int, ...]
    channels: int
    r2: float
    """Share of the (standardised) variance of all channels that the kept ones explain."""
    bound: float
    """The same for as many principal components."""


@dataclass(kw_only=True)
class Pruner:
    """How channels are chosen and lost ones are made up for."""

    select: Select = "greedy"
    score: Score = "corr"
    recovery: Recovery = "propagate"
    seed: int = 0
    watch: Callable[[str], None] = lambda text: None
    """Told each point when it is done."""
    choices: list[Choice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def choose(self, point: str, clips: Clips, k: int, consumer: Norm | None) -> Int[Tensor, " k"]:
        """Channels to keep of the features `clips`; `consumer` is the norm that reads them, for ``act``."""
        moments = Moments()
        for clip in clips:
            moments.add(rows(consumer(clip) if self.score == "act" and consumer is not None else clip))
        gram = moments.gram(standardised=self.score == "corr")
        magnitude = torch.as_tensor(moments.absolute) / moments.count
        kept = select_channels(gram, k, self.select, magnitude=magnitude, generator=self.generator)
        found = Choice(
            point=point,
            kept=tuple(kept.tolist()),
            channels=len(gram),
            r2=r2(gram, kept),
            bound=pca_bound(gram, k),
        )
        self.choices.append(found)
        self.watch(f"{point}: {k} of {len(gram)} channels, R2 {found.r2:.3f} (bound {found.bound:.3f})")
        return kept

    def recover(self, student: Clips, teacher: Clips, kept: Tensor, sliced: Clips) -> tuple[Tensor, Tensor]:
        """``M, m`` with ``teacher ~ M^T student + m``; for ``slice`` the rows of the identity."""
        if self.recovery == "slice":
            eye = torch.eye(teacher[0].shape[2], dtype=torch.float64)
            return eye[kept], torch.zeros(len(eye), dtype=torch.float64)
        return regress(student if self.recovery == "propagate" else sliced, teacher)


def regress(x: Clips, y: Clips) -> tuple[Tensor, Tensor]:
    """Least squares over all positions of all clips."""
    found = LeastSquares()
    for ours, theirs in zip(x, y, strict=True):
        found.add(rows(ours), rows(theirs))
    return found.solve()


@torch.no_grad()
def prune(teacher: WanDecoder, student: WanDecoder, latents: Sequence[Clip], pruner: Pruner) -> list[Choice]:
    """Give `student` weights that make it as much like `teacher` as can be without training.

    Args:
        teacher: all dense.
        student: a decoder of the same VAE with other operators and widths; its weights are overwritten.
        latents: not normalised, of calibration clips; all features of one layer are held at once.
        pruner: how; its `choices` are filled.

    Returns:
        The choices, in order.
    """
    if not latents:
        raise ValueError("no calibration latents: give at least one clip")
    x = [teacher.post_quant_conv(channels_last(clip.transpose(1, 2))) for clip in latents]
    _copy(student.post_quant_conv, teacher.post_quant_conv)
    x, ours = _early(teacher.decoder, student.decoder, x, pruner)
    kept: Any = None
    narrow = False
    blocks: Any = zip(teacher.decoder.up_blocks, student.decoder.up_blocks, strict=True)
    for number, (source, target) in enumerate(blocks):
        stage = student.spec.stages[number]
        if stage.narrow and not narrow:  # the resampler before keeps only some rows
            kept = pruner.choose(f"up{number}.in", x, stage.inside, source.resnets[0].norm1)
            _keep_rows(student.decoder.up_blocks[number - 1], teacher.decoder.up_blocks[number - 1], kept)
        if number and not narrow:
            ours = _resampled(student.decoder.up_blocks[number - 1], x, ours, kept, pruner)
        narrow = stage.narrow
        if not narrow:
            x, ours = _wide(source, target, x, ours, pruner)
            continue
        following = student.spec.stages[number + 1].inside if number + 1 < len(student.spec.stages) else 0
        x, ours, kept = _narrow(source, target, x, ours, kept, pruner, f"up{number}", following)
    _head(teacher.decoder, student.decoder, x, ours, kept, pruner)
    return pruner.choices


def _early(teacher: Any, student: Any, x: Clips, pruner: Pruner) -> tuple[Clips, Clips]:
    """Input convolution and middle block; features of the teacher and the student."""
    _copy(student.conv_in, teacher.conv_in)
    _convert(teacher.mid_block, student.mid_block)
    x = ours = [teacher.conv_in(clip) for clip in x]
    (first, second), attention = teacher.mid_block.resnets, teacher.mid_block.attentions[0]
    x, ours = _full(first, student.mid_block.resnets[0], x, ours, pruner)
    x, ours = [attention(clip) for clip in x], [student.mid_block.attentions[0](clip) for clip in ours]
    return _full(second, student.mid_block.resnets[1], x, ours, pruner)


def _wide(source: Any, target: Any, x: Clips, ours: Clips, pruner: Pruner) -> tuple[Clips, Clips]:
    """An up-block that keeps its width: features of the teacher behind it, of the student before its resampler."""
    _convert(source, target)
    for old, new in zip(source.resnets, target.resnets, strict=True):
        x, ours = _full(old, new, x, ours, pruner)
    return (x if source.upsamplers is None else [source.upsamplers[0](clip) for clip in x]), ours


def _full(old: Any, new: Any, x: Clips, ours: Clips, pruner: Pruner) -> tuple[Clips, Clips]:
    """A residual block of full width; separable convolutions are regressed on the student's own features."""
    inner = [old.conv1(old.norm1(clip)) for clip in x]
    out = [old.conv2(old.norm2(clip)) + old.conv_shortcut(by) for clip, by in zip(inner, x, strict=True)]
    if pruner.recovery == "propagate" and isinstance(new.conv1, Separable):
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


def _resampled(block: Any, x: Clips, ours: Clips, kept: Tensor | None, pruner: Pruner) -> Clips:
    """The student's features behind the resampler of a block of full width, or the teacher's where it goes on alone."""
    if pruner.recovery != "propagate":
        return x if kept is None else [clip[:, :, kept] for clip in x]
    return [block.upsamplers[0](clip) for clip in ours]


def _convert(source: nn.Module, target: nn.Module) -> None:
    """Copy weights, replacing operators where the target has others."""
    for theirs, ours in zip(_residuals(source), _residuals(target), strict=True):
        set_operator(ours.conv1, theirs.conv1.weight, theirs.conv1.bias)
        set_operator(ours.conv2, theirs.conv2.weight, theirs.conv2.bias)
        past = theirs.conv_shortcut
        if isinstance(past, nn.Identity) and not isinstance(ours.conv_shortcut, nn.Identity):
            same = torch.eye(len(theirs.conv2.bias))[:, :, None, None, None]
            set_operator(ours.conv_shortcut, same, torch.zeros(len(same)))
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


def _keep_rows(target: Any, source: Any, kept: Tensor) -> None:
    ours, theirs = target.upsamplers[0].resample["1"], source.upsamplers[0].resample["1"]
    ours.weight.copy_(theirs.weight[kept])
    ours.bias.copy_(theirs.bias[kept])


def _narrow(
    source: Any, target: Any, x: Clips, ours: Clips, kept: Tensor, pruner: Pruner, name: str, following: int
) -> tuple[Clips, Clips, Tensor]:
    """All blocks of a narrowed up-block, and its resampler into the next one."""
    for number, (old, new) in enumerate(zip(source.resnets, target.resnets, strict=True)):
        after = source.resnets[number + 1].norm1 if number + 1 < len(source.resnets) else None
        x, ours, kept = _block(old, new, x, ours, kept, pruner, f"{name}.{number}", after)
    if source.upsamplers is None:
        return x, ours, kept
    up, own = source.upsamplers[0], target.upsamplers[0]
    through = [up(clip) for clip in x]
    rest = pruner.choose(f"{name}.up", through, following, None)
    recovery, offset = pruner.recover(ours, x, kept, [clip[:, :, kept] for clip in x])
    conv = up.resample["1"]
    weight, bias = fold_consumer(conv.weight[rest], conv.bias[rest], recovery, offset)
    own.resample["1"].weight.copy_(weight)
    own.resample["1"].bias.copy_(bias)
    return through, [own(clip) for clip in ours], rest


def _block(
    old: Any, new: Any, x: Clips, ours: Clips, kept: Tensor, pruner: Pruner, name: str, after: Norm | None
) -> tuple[Clips, Clips, Tensor]:
    """One residual block: steps 3 to 9 of P1."""
    activated = [old.norm1(clip) for clip in x]
    inner = [old.conv1(clip) for clip in activated]
    past = [old.conv_shortcut(clip) for clip in x]
    out = [old.conv2(old.norm2(clip)) + by for clip, by in zip(inner, past, strict=True)]
    middle = pruner.choose(f"{name}.inner", inner, new.conv1.weight.shape[0], old.norm2)
    rest = pruner.choose(name, out, new.conv2.weight.shape[0], after)
    factor, shift = regress(ours, [by[:, :, rest] for by in past])  # slice regresses here too: the subsets differ
    new.conv_shortcut.weight.copy_(factor.T.view_as(new.conv_shortcut.weight))
    new.conv_shortcut.bias.copy_(shift)
    narrow_inner = _consume(old.norm1, old.conv1, new.norm1, new.conv1, x, ours, kept, middle, pruner)
    narrow_out = _consume(old.norm2, old.conv2, new.norm2, new.conv2, inner, narrow_inner, middle, rest, pruner)
    own = [found + new.conv_shortcut(clip) for found, clip in zip(narrow_out, ours, strict=True)]
    return out, own, rest


def _consume(
    norm: Norm,
    conv: Causal,
    own_norm: Norm,
    own: Any,
    x: Clips,
    ours: Clips,
    kept: Tensor,
    wanted: Tensor,
    pruner: Pruner,
) -> Clips:
    """Set norm and convolution of the student where the teacher reads all channels; returns the student's output."""
    own_norm.gamma.copy_(norm.gamma[kept])
    activated, full = [own_norm(clip) for clip in ours], [norm(clip) for clip in x]
    recovery, offset = pruner.recover(activated, full, kept, [own_norm(clip[:, :, kept]) for clip in x])
    weight, bias = fold_consumer(conv.weight[wanted], conv.bias[wanted], recovery, offset)
    set_operator(own, weight, bias)
    return [own(clip) for clip in activated]


def _head(teacher: Any, student: Any, x: Clips, ours: Clips, kept: Tensor | None, pruner: Pruner) -> None:
    if kept is None or student.norm_out.gamma.shape == teacher.norm_out.gamma.shape:
        _copy(student.norm_out, teacher.norm_out)
        _copy(student.conv_out, teacher.conv_out)
        return
    every = torch.arange(teacher.conv_out.weight.shape[0])
    _consume(teacher.norm_out, teacher.conv_out, student.norm_out, student.conv_out, x, ours, kept, every, pruner)


def _copy(target: nn.Module, source: nn.Module) -> None:
    target.load_state_dict(source.state_dict())
