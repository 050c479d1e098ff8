"""Inputs of ``fewstep run`` for few-step students: a video from a prompt, written to a file."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..contract import Loaded
from ..data import video
from ..errors import FewstepError, check_least
from ..families import wan
from .few_steps import is_student
from .wan import WanStudent

SHORTER_SIDE = 240
"""Pixels of the shorter side to which smaller videos are enlarged."""


@dataclass(frozen=True, kw_only=True)
class VideoInputs:
    """A video from a prompt; sizes that are not given are those that the student was trained on."""

    prompt: str
    """Text that the video shows."""
    output: Path
    """Video file that is written: .mp4 or .gif."""
    frames: int | None = None
    """Number of frames, one more than a multiple of 4 for Wan."""
    height: int | None = None
    """Rows, a multiple of 16 for Wan."""
    width: int | None = None
    """Columns, a multiple of 16 for Wan."""
    seed: int = 0
    """Seed of the noise that the video begins with."""
    fps: float = 16.0
    """Frames a second in the file."""
    zoom: int = 0
    """Pixels of the file for each pixel of the video, each way; 0 enlarges small videos so that they can be seen."""
    untrained: bool = False
    """Run the steps also without weights of a student, on a pipeline that is none."""
    compare: bool = False
    """Make the video with the unchanged pipeline first, and write both side by side."""
    compare_steps: int = 30
    """Steps of the unchanged pipeline."""
    compare_guidance: float | None = None
    """Guidance of the unchanged pipeline; default: its own."""

    def __post_init__(self) -> None:
        check_least(self, frames=1, height=1, width=1, zoom=0)
        video.check_rate(self.fps)

    def __call__(self, loaded: Loaded, method: WanStudent) -> None:
        """Make the video and print its size, network calls and seconds.

        Raises:
            FewstepError: neither the method nor the pipeline has a student's weights, and `untrained` is off.
            UnsupportedModelError: the model is no Wan pipeline.
            ValueError: the model makes no videos of this size.
        """
        video.check_writable(self.output)
        pipe = loaded.model
        transformer = wan.check(pipe)
        if not self.untrained:
            _refuse_teacher(loaded, method)
        pipe.set_progress_bar_config(disable=True)
        before = self._timed(pipe, transformer, method, self._unchanged()) if self.compare else None
        with method.apply(pipe):
            frames, calls, seconds = self._timed(pipe, transformer, method, {})
        shape = "x".join(map(str, (frames.shape[0], *frames.shape[2:])))
        print(f"video: {shape}\nnetwork calls: {calls}\nseconds: {seconds:.2f}")
        if before is not None:
            frames = torch.cat([before[0], frames], 3)
            ratio = before[2] / seconds
            print(
                f"unchanged model: {before[1]} network calls, {before[2]:.2f} s: {ratio:.1f}x as fast with the method"
            )
        zoom = self.zoom or max(1, math.ceil(SHORTER_SIDE / min(frames.shape[2:])))
        video.write(video.looped(frames, self.fps), self.output, fps=self.fps, zoom=zoom)
        print(f"wrote {self.output}" + (": the unchanged model, then the method" if self.compare else ""))

    def _unchanged(self) -> dict[str, Any]:
        guidance = {} if self.compare_guidance is None else {"guidance_scale": self.compare_guidance}
        return {"num_inference_steps": self.compare_steps, **guidance}

    def _timed(
        self, pipe: Any, transformer: nn.Module, method: WanStudent, options: dict[str, Any]
    ) -> tuple[Float[Tensor, "f c h w"], int, float]:
        """Frames, network calls and seconds."""
        with _counted_calls(transformer) as calls:
            start = time.perf_counter()
            frames = self._frames(pipe, method, options)
            return frames, len(calls), time.perf_counter() - start

    def _frames(self, pipe: Any, method: WanStudent, more: dict[str, Any]) -> Float[Tensor, "f c h w"]:
        """Frames with values in [0, 1]; the latents of a pipeline without a VAE are the pixels themselves."""
        given = {"num_frames": self.frames, "height": self.height, "width": self.width}
        trained = dict(zip(given, method.size or (), strict=False))
        call = trained | {name: value for name, value in given.items() if value is not None}
        own = {name: inspect.signature(pipe.__call__).parameters[name].default for name in given}
        wan.architecture(pipe).latent(*(own | call).values())  # says what does not fit
        tokens = min(512, pipe.tokenizer.model_max_length)
        generator = torch.Generator().manual_seed(self.seed)
        output_type = "latent" if pipe.vae is None else "pt"
        options = {"generator": generator, "max_sequence_length": tokens, "output_type": output_type, **more}
        frames = pipe(self.prompt, **options, **call).frames[0]
        return frames.transpose(0, 1) / 2 + 0.5 if pipe.vae is None else frames


def _refuse_teacher(loaded: Loaded, method: WanStudent) -> None:
    """Refuse a method without weights on a pipeline whose scheduler is not that of a student of its steps."""
    if method.weights is None and not is_student(loaded.model, method.grid):
        timesteps = ", ".join(f"{timestep:.1f}" for timestep in method.grid.timesteps)
        raise FewstepError(
            f"{loaded.name} is no student: its scheduler holds other timesteps than {timesteps}. Name a student with "
            "--weights or --method-from; --untrained runs these steps all the same"
        )


@contextmanager
def _counted_calls(network: nn.Module) -> Iterator[list[None]]:
    """List with one entry for each call of `network` inside."""
    calls: list[None] = []
    hook = network.register_forward_pre_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        hook.remove()
