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
from torch import Tensor

from .causal import Frames
from .decoder import Clip, WanDecoder
from .full_width import copy, early, resampled, set_operator, wide
from .layers import Causal, Norm, channels_last
from .operators import LeastSquares, fold_consumer
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
        kept = select_channels(gram, k, self.select, magnitude=magnitude, generator=self.generator).sort().values
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
        latents: not normalised, of calibration clips; all features of one layer, of both, are held at once.
        pruner: how; its `choices` are filled.

    Returns:
        The choices, in order.
    """
    if not latents:
        raise ValueError("no calibration latents: give at least one clip")
    propagate = pruner.recovery == "propagate"
    x = [teacher.post_quant_conv(channels_last(clip.transpose(1, 2))) for clip in latents]
    copy(student.post_quant_conv, teacher.post_quant_conv)
    x, ours = early(teacher.decoder, student.decoder, x, propagate)
    kept = torch.empty(0, dtype=torch.long)
    narrow = False
    blocks: Any = zip(teacher.decoder.up_blocks, student.decoder.up_blocks, strict=True)
    for number, (source, target) in enumerate(blocks):
        stage = student.spec.stages[number]
        if stage.narrow and not narrow:  # the resampler before keeps only some rows
            kept = pruner.choose(f"up{number}.in", x, stage.inside, source.resnets[0].norm1)
            _keep_rows(student.decoder.up_blocks[number - 1], teacher.decoder.up_blocks[number - 1], kept)
        if number and not narrow:
            going_on = ours if propagate else None
            ours = resampled(student.decoder.up_blocks[number - 1], x, going_on, kept if stage.narrow else None)
        narrow = stage.narrow
        if not narrow:
            x, ours = wide(source, target, x, ours, propagate)
            continue
        following = student.spec.stages[number + 1].inside if number + 1 < len(student.spec.stages) else 0
        x, ours, kept = _narrow(source, target, x, ours, kept, pruner, f"up{number}", following)
    _head(teacher.decoder, student.decoder, x, ours, kept, pruner)
    return pruner.choices


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


def _head(teacher: Any, student: Any, x: Clips, ours: Clips, kept: Tensor, pruner: Pruner) -> None:
    if student.norm_out.gamma.shape == teacher.norm_out.gamma.shape:
        copy(student.norm_out, teacher.norm_out)
        copy(student.conv_out, teacher.conv_out)
        return
    every = torch.arange(teacher.conv_out.weight.shape[0])
    _consume(teacher.norm_out, teacher.conv_out, student.norm_out, student.conv_out, x, ours, kept, every, pruner)
