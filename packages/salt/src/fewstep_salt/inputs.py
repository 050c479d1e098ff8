"""Inputs of ``fewstep run salt``: a video of any length into a file, or into a page on this machine as it is made."""

from __future__ import annotations

import math
import re
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fewstep import hub
from fewstep.cli.player import Player
from fewstep.cli.progress import following
from fewstep.contract import Loaded
from fewstep.data import video
from fewstep.data.video_writer import VideoWriter
from fewstep.errors import FewstepError, check_least
from fewstep.families import wan
from fewstep.families.wan_lengths import check_positions, chunks_for, longest
from fewstep.families.wan_stream import WanStream

from .making import Made, Schedule
from .method import Salt

SHORTER_SIDE = 240
"""Pixels of the shorter side to which smaller videos are enlarged in files."""
SECONDS = 5.0
"""Length of a video whose length is not given."""


@dataclass(frozen=True, kw_only=True)
class StreamInputs:
    """A video from a prompt, chunk by chunk: ``"pan right, then left"`` goes on with another prompt half-way."""

    prompt: str
    """Text that the video shows; parts behind ", then" take over one after the other, each for an equal time."""
    output: Path | None = None
    """Video file (.mp4) that is written as the frames come."""
    seconds: float | None = None
    """Length of the video; default: 5, and with --stream until it is stopped."""
    stream: bool = False
    """Serve a page on this machine that plays the video while it is made and takes new prompts."""
    port: int = 0
    """Port of the page; 0 takes a free one."""
    height: int | None = None
    """Rows; default: those that the student was trained on."""
    width: int | None = None
    """Columns; default: those that the student was trained on."""
    seed: int = 0
    """Seed of the noise."""
    fps: float = 16.0
    """Frames a second."""
    zoom: int = 0
    """Pixels of the file for each pixel of the video, each way; 0 enlarges small videos so that they can be seen."""
    untrained: bool = False
    """Run also a pipeline that is no causal student, without weights of one."""

    def __post_init__(self) -> None:
        check_least(self, height=1, width=1, zoom=0, port=0)
        video.check_rate(self.fps)
        if self.output is None and not self.stream:
            raise ValueError("name a file with --output, or play the video with --stream")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds must be above 0, found {self.seconds}")
        if len(self.parts()) > 1 and self.total is None:
            raise ValueError("a prompt with ', then' needs --seconds, since its parts share the time")

    def parts(self) -> list[str]:
        """The prompts, in order.

        Raises:
            ValueError: one is empty.
        """
        parts = [part.strip() for part in re.split(r",\s*then\b", self.prompt)]
        if not all(parts):
            raise ValueError("the prompt is empty, or a part of it: say what the video shows")
        return parts

    @property
    def total(self) -> int | None:
        """Frames of the video; None: endless."""
        if self.seconds is None and self.stream:
            return None
        return max(1, round((self.seconds or SECONDS) * self.fps))

    def __call__(self, loaded: Loaded, method: Salt) -> None:
        """Make the video; Ctrl-C finishes the file with the frames that are there.

        Raises:
            FewstepError: neither the method nor the pipeline has a causal student's weights, and `untrained` is off.
            UnsupportedModelError: the model is no Wan pipeline.
            ValueError: a prompt, the size or the length does not fit the model.
        """
        pipe = loaded.model
        wan.check(pipe)
        if not self.untrained:
            _refuse_bidirectional(loaded, method)
        made = Made(self.total)
        with ExitStack() as stack:
            stack.enter_context(method.apply(pipe))
            begun = time.perf_counter()
            generator = torch.Generator().manual_seed(self.seed)
            size = {"height": self.height, "width": self.width}
            stream = stack.enter_context(method.stream(pipe, self.parts()[0], generator=generator, **size))
            schedule = self._schedule(pipe, method, stream)
            try:
                self._make(stream, schedule, made, begun)
            except KeyboardInterrupt:
                self._say_end(made, stopped=True)
                if self.total is not None:
                    raise
            else:
                self._say_end(made, stopped=False)

    def _schedule(self, pipe: Any, method: Salt, stream: WanStream) -> Schedule:
        """Chunks and the prompts that begin with some of them; what cannot be is said before the work."""
        options, parts = stream.options, self.parts()
        wan.check_prompts(pipe, parts, options.tokens)
        if self.total is None:
            last = longest(pipe, options.policy)
            return Schedule(count=None if last is None else last // method.chunk)
        count = chunks_for(pipe, self.total, method.chunk)
        check_positions(pipe, count * method.chunk, options.policy)
        if len(parts) > count:
            raise ValueError(f"{len(parts)} prompts need as many chunks, and this video has {count}: more --seconds")
        begins = {number * count // len(parts): prompt for number, prompt in enumerate(parts)}
        return Schedule(count=count, prompts=begins)

    def _make(self, stream: WanStream, schedule: Schedule, made: Made, begun: float) -> None:
        """Make chunk after chunk and hand each to the file and to the page."""
        with ExitStack() as stack:
            zoom = self.zoom or max(1, math.ceil(SHORTER_SIDE / min(stream.height, stream.width)))
            writer = player = None
            if self.output is not None:
                writer = stack.enter_context(VideoWriter(self.output, fps=self.fps, zoom=zoom))
            if self.stream:
                player = stack.enter_context(Player(stream.switch, fps=self.fps, port=self.port))
                print(f"playing on {player.address} (Ctrl-C ends it)", flush=True)
            progress = stack.enter_context(following("salt"))
            for number, chunk in enumerate(schedule.of(stream), 1):
                frames = made.add(chunk, begun)
                if writer is not None:
                    writer.add(frames)
                if player is not None:
                    player.state = {"prompt": stream.prompt, **made.shown()}
                    player.show(frames)
                progress.line(number, schedule.count, made.line())
            if player is not None:
                player.drain()

    def _say_end(self, made: Made, *, stopped: bool) -> None:
        """Print what was made, and whether it is all that was asked for."""
        print("\n".join(f"{name}: {value}" for name, value in made.facts().items()))
        if self.output is not None and made.frames:
            print(f"wrote {self.output}" + (": what there was when it was stopped" if stopped else ""))


def _refuse_bidirectional(loaded: Loaded, method: Salt) -> None:
    """Refuse a method without weights on a pipeline that no causal student was saved with."""
    if method.weights is None and hub.shipped(loaded.name, method.name) is None and method.of(loaded.model) is None:
        raise FewstepError(
            f"{loaded.name} is no causal student: no saved {method.name} comes with it. Name one with --weights or "
            "--method-from; --untrained makes chunks with its weights all the same"
        )
