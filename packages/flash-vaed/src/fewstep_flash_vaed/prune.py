"""Pruning (arXiv:2602.19161, section 3), in the order of the layers: a decoder becomes its student.

Teacher and student run side by side over calibration clips, so that each regression sees what the layers before it
really give. With ``x`` features of the teacher, ``x~`` those of the student, ``rho_g(x) = SiLU(RMSnorm(x) g)``:

1. Entry: choose channels ``S_in``; the resampler before the first narrow stage keeps those rows.
2. In each residual block choose ``S_mid`` behind its first convolution and ``S_out`` at its output.
3. Shortcut: ``x[S_out] ~ A x~ + a`` by least squares.
4. For each convolution ``W, b``: ``rho_g(x) ~ M^T rho_g[S](x~) + m`` by least squares.
5. ``W' = W[S] M^T`` and ``b' = b[S] + (W[S] summed over taps) m``; then the sum over time where frames stand alone.
6. Exit: steps 4 and 5 for the next convolution of all channels, a resampler (without ``rho``) or the head.

The features that are scored, and the recoveries `fold` and `propagate`, are ours: the paper does not say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from einops import rearrange
from fewstep.families.wan_vae import Clip
from torch import Tensor, nn

from . import algebra
from .algebra import Selection, rows
from .decoder import StudentStage, WanDecoder
from .layers import CausalConv, FrameConv, Frames, NormSilu, Separable, channels_last

FeatureScore = Literal["corr", "cov", "act"]
"""Correlation or covariance of the maps themselves; covariance behind the norm and activation that read them."""
Recovery = Literal["propagate", "fold", "slice"]
"""Consumers are regressed on the student's own features, on the teacher's kept ones, or only cut to size."""
Features = list[Frames]
"""Output of one layer for each calibration clip."""


@dataclass(frozen=True, kw_only=True)
class ChannelChoice:
    """Channels that were kept at one point of the decoder."""

    point: str
    """``up2.0.inner``: block 0 of up-block 2, behind its first convolution; ``up2.0``: its output; ``up2.in``."""
    kept: tuple[int, ...]
    """Channels of the teacher."""
    channels: int
    """Channels that the teacher has there."""
    r2: float
    """Share of the (standardised) variance of all channels that the kept ones explain."""
    bound: float
    """The same for as many principal components."""


@dataclass(kw_only=True)
class PruningWalk:
    """One walk through teacher and student; call `run` once."""

    select: Selection = "greedy"
    score: FeatureScore = "act"
    recovery: Recovery = "propagate"
    seed: int = 0
    """Seed of random selection."""
    watch: Callable[[str], None] = lambda text: None
    """Told each point when it is done."""
    choices: list[ChannelChoice] = field(default_factory=list, init=False)
    x: Features = field(default_factory=list, init=False)
    """Features of the teacher behind the layers that are done."""
    own: Features = field(default_factory=list, init=False)
    """Features of the student there."""
    kept: Tensor | None = field(default=None, init=False)
    """Channels of the teacher that those of the student stand for; None: all."""

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    @torch.no_grad()
    def run(self, teacher: WanDecoder, student: WanDecoder, latents: Sequence[Clip]) -> list[ChannelChoice]:
        """Give `student` weights that make it as much like `teacher` as can be without training.

        Args:
            teacher: all dense.
            student: a decoder of the same VAE with other operators and widths; its weights are overwritten.
            latents: not normalised, of calibration clips; all features of one layer, of both, are held at once.

        Returns:
            The choices, in order.

        Raises:
            ValueError: there are no latents, or features are not finite.
        """
        if not latents:
            raise ValueError("no calibration latents: give at least one clip")
        old: Any = teacher.decoder
        new: Any = student.decoder
        self.x = self.own = [channels_last(clip.transpose(1, 2)) for clip in latents]
        self.equal(teacher.post_quant_conv, student.post_quant_conv)
        self.equal(old.conv_in, new.conv_in)
        self.wide(old.mid_block.resnets[0], new.mid_block.resnets[0])
        self.equal(old.mid_block.attentions[0], new.mid_block.attentions[0])
        self.wide(old.mid_block.resnets[1], new.mid_block.resnets[1])
        stages = student.shape.stages
        for number, (stage, source, target) in enumerate(zip(stages, old.up_blocks, new.up_blocks, strict=True)):
            readers = [*(block.norm1 for block in source.resnets[1:]), None]
            blocks = zip(source.resnets, target.resnets, readers, strict=True)
            for block, (theirs, ours, reader) in enumerate(blocks):
                if stage.narrow:
                    self.narrow(theirs, ours, f"up{number}.{block}", reader)
                else:
                    self.wide(theirs, ours)
            if stage.up:
                reader = old.up_blocks[number + 1].resnets[0].norm1
                self.resampler(source.upsamplers[0], target.upsamplers[0], number, stages[number + 1], reader)
        self.head((old.norm_out, old.conv_out), (new.norm_out, new.conv_out))
        return self.choices

    def equal(self, old: nn.Module, new: nn.Module) -> None:
        """Pass a layer of the same shape, whose weights are copied."""
        copy(new, old)
        self.x, self.own = [old(clip) for clip in self.x], [new(clip) for clip in self.own]

    def wide(self, old: Any, new: Any) -> None:
        """Pass a residual block that keeps its width (section 3, operators): kernels replaced by the closest ones.

        With `propagate` separable convolutions are fitted to features: the first to the teacher's, the second to what
        the shortcut leaves of the teacher's output.
        """
        for name in ("norm1", "norm2"):
            copy(getattr(new, name), getattr(old, name))
        for name in ("conv1", "conv2", "conv_shortcut"):
            set_operator(getattr(new, name), getattr(old, name), len(old.conv2.bias))
        inner = [old.conv1(old.norm1(clip)) for clip in self.x]
        out = [
            old.conv2(old.norm2(hidden)) + old.conv_shortcut(clip) for hidden, clip in zip(inner, self.x, strict=True)
        ]
        if self.recovery == "propagate" and isinstance(new.conv1, Separable):
            hidden = fit_features(new.conv1, [new.norm1(clip) for clip in self.own], inner)
            rest = [clip - new.conv_shortcut(own) for clip, own in zip(out, self.own, strict=True)]
            fit_features(new.conv2, [new.norm2(clip) for clip in hidden], rest)
        self.x, self.own = out, [new(clip) for clip in self.own]

    def narrow(self, old: Any, new: Any, point: str, reader: NormSilu | None) -> None:
        """Pass a residual block of fewer channels, steps 2 to 5; `reader` is the norm behind it, if there is one."""
        assert self.kept is not None
        inner = [old.conv1(old.norm1(clip)) for clip in self.x]
        past = [old.conv_shortcut(clip) for clip in self.x]
        out = [old.conv2(old.norm2(hidden)) + by for hidden, by in zip(inner, past, strict=True)]
        middle = self.choose(f"{point}.inner", inner, len(new.conv1.weight), old.norm2)
        rest = self.choose(point, out, len(new.conv2.weight), reader)
        # step 3: x[S_out] ~ A x~ + a; for `slice` too, since the two subsets differ
        factor, shift = regress(self.own, [by[:, :, rest] for by in past])
        new.conv_shortcut.weight.copy_(factor.T.view_as(new.conv_shortcut.weight))
        new.conv_shortcut.bias.copy_(shift)
        own = self.consume((old.norm1, old.conv1), (new.norm1, new.conv1), self.x, self.own, self.kept, middle)
        own = self.consume((old.norm2, old.conv2), (new.norm2, new.conv2), inner, own, middle, rest)
        self.own = [clip + new.conv_shortcut(before) for clip, before in zip(own, self.own, strict=True)]
        self.x, self.kept = out, rest

    def resampler(self, old: Any, new: Any, number: int, following: StudentStage, reader: NormSilu) -> None:
        """Pass the resampler of up-block `number`: it gives the channels that the next one takes."""
        if old.time_conv is not None:
            copy(new.time_conv, old.time_conv)
        through = [old(clip) for clip in self.x]
        weight, bias = old.resample["1"].weight, old.resample["1"].bias
        if self.kept is not None:  # steps 6 and 1
            rest = self.choose(f"up{number}.up", through, following.inside, None)
            recovery, offset = self.recover(self.own, self.x, self.kept, [clip[:, :, self.kept] for clip in self.x])
            weight, bias = algebra.fold_consumer(weight[rest], bias[rest], recovery, offset)
        elif following.narrow:  # step 1
            rest = self.choose(f"up{number + 1}.in", through, following.inside, reader)
            weight, bias = weight[rest], bias[rest]
        else:
            rest = torch.arange(len(bias))
        new.resample["1"].weight.copy_(weight)
        new.resample["1"].bias.copy_(bias)
        follows = self.recovery == "propagate" or self.kept is not None
        self.own = [new(clip) for clip in self.own] if follows else [clip[:, :, rest] for clip in through]
        self.x, self.kept = through, rest if following.narrow else None

    def head(self, old: tuple[NormSilu, CausalConv], new: tuple[NormSilu, CausalConv]) -> None:
        """Pass norm and convolution behind the last block: step 6."""
        if self.kept is None or len(self.kept) == len(old[0].gamma):
            for target, source in zip(new, old, strict=True):
                copy(target, source)
        else:
            self.consume(old, new, self.x, self.own, self.kept, torch.arange(len(old[1].weight)))

    def consume(
        self,
        old: tuple[NormSilu, CausalConv],
        new: tuple[NormSilu, Any],
        x: Features,
        own: Features,
        kept: Tensor,
        wanted: Tensor,
    ) -> Features:
        """Steps 4 and 5: set the student's norm and convolution where the teacher reads all channels.

        Args:
            old: norm and convolution of the teacher.
            new: those of the student.
            x: input of the teacher's.
            own: input of the student's.
            kept: channels of `x` that those of `own` stand for.
            wanted: output channels of the teacher's that those of the student's stand for.

        Returns:
            Output of the student's.
        """
        (norm, conv), (own_norm, own_conv) = old, new
        own_norm.gamma.copy_(norm.gamma[kept])
        activated = [own_norm(clip) for clip in own]
        # step 4: rho_g(x) ~ M^T rho_g[S](x~) + m
        cut = [own_norm(clip[:, :, kept]) for clip in x]
        recovery, offset = self.recover(activated, [norm(clip) for clip in x], kept, cut)
        # step 5: W' = W[S] M^T, b' = b[S] + (W[S] summed over taps) m; `assign` sums over time
        assign(own_conv, *algebra.fold_consumer(conv.weight[wanted], conv.bias[wanted], recovery, offset))
        return [own_conv(clip) for clip in activated]

    def choose(self, point: str, features: Features, k: int, reader: NormSilu | None) -> Tensor:
        """Steps 1 and 2: choose `k` channels, in ascending order; `reader` is the norm that reads them, for ``act``."""
        scored = (rows(reader(clip) if self.score == "act" and reader is not None else clip) for clip in features)
        gram, magnitude = algebra.moments(scored, standardised=self.score == "corr")
        kept = algebra.select_channels(gram, k, self.select, magnitude=magnitude, generator=self.generator)
        kept = kept.sort().values
        explained, bound = algebra.r2(gram, kept), algebra.pca_bound(gram, k)
        self.watch(f"{point}: {k} of {len(gram)} channels, R2 {explained:.3f} (bound {bound:.3f})")
        choice = ChannelChoice(point=point, kept=tuple(kept.tolist()), channels=len(gram), r2=explained, bound=bound)
        self.choices.append(choice)
        return kept

    def recover(self, own: Features, x: Features, kept: Tensor, cut: Features) -> tuple[Tensor, Tensor]:
        """``M, m`` with ``x ~ M^T own + m``; `fold` regresses on `cut`, `slice` takes the rows of the identity."""
        if self.recovery == "slice":
            eye = torch.eye(x[0].shape[2], dtype=torch.float64)
            return eye[kept], torch.zeros(len(eye), dtype=torch.float64)
        return regress(own if self.recovery == "propagate" else cut, x)


def copy(target: nn.Module, source: nn.Module) -> None:
    """Copy all weights of a module of the same shape."""
    target.load_state_dict(source.state_dict())


def regress(x: Features, y: Features) -> tuple[Tensor, Tensor]:
    """``M, m`` with ``y ~ M^T x + m`` over all positions of all clips."""
    return algebra.regress((rows(a), rows(b)) for a, b in zip(x, y, strict=True))


def set_operator(target: Any, source: Any, width: int) -> None:
    """Give `target`, a convolution of any operator, the weights closest to `source`, a dense one or the identity."""
    if isinstance(target, nn.Identity):
        return
    if isinstance(source, nn.Identity):
        assign(target, rearrange(torch.eye(width), "o c -> o c 1 1 1"), torch.zeros(width))
    else:
        assign(target, source.weight, source.bias)


def assign(target: Any, weight: Tensor, bias: Tensor) -> None:
    """Set the weights closest to a dense kernel ``[o, c, 3, 3, 3]`` or ``[o, c, 1, 1, 1]``."""
    if isinstance(target, Separable):
        same = torch.ones_like(target.depthwise.weight)
        depthwise, pointwise = (same, weight) if weight.shape[-1] == 1 else algebra.conv3d_to_dw(weight)
        target.depthwise.weight.copy_(depthwise)
        target.depthwise.bias.zero_()
        target.pointwise.weight.copy_(pointwise)
        target.pointwise.bias.copy_(bias)
    else:
        collapsed = algebra.conv3d_to_2d(weight) if isinstance(target, FrameConv) else weight
        target.weight.copy_(collapsed.view_as(target.weight))
        target.bias.copy_(bias)


def fit_features(conv: Separable, x: Features, wanted: Features) -> Features:
    """Let a separable convolution of `x` come close to `wanted`, from the weights that it has; returns its output."""
    depthwise, pointwise, bias = algebra.fit_separable(x, wanted, conv.depthwise.weight)
    conv.depthwise.weight.copy_(depthwise)
    conv.pointwise.weight.copy_(pointwise)
    conv.pointwise.bias.copy_(bias)
    return [conv(clip) for clip in x]
