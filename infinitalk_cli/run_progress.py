"""From what the engine says to what a viewer wants: the share done, the time left, the memory in use.

The preparation is short beside the video, and its parts differ between machines, so each gets a fixed small share; the
video's share is counted in steps. The time left is that of the steps, whose duration hardly varies, and of the turns
between two chunks, where one is decoded and the next one's pictures are encoded. A turn takes a fraction of a step or
the time of many, so it is measured; until then the run's first step stands for one, as it has encoding and warming up
in it. Where that would be most of the time, none is told before the first turn.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from infinitalk_cli.progress import OnProgress, Progress

PREPARATION: dict[str, float] = {"speech": 0.0, "reference": 0.01, "text": 0.02, "weights": 0.06}
"""The stages before the video, each with the share of the run that is done when it begins."""

VIDEO_BEGINS = 0.1
"""The share of the run that is done when the first step begins."""

STEPS_OF_DECODING = 1
"""What decoding and writing a chunk counts for, beside its steps."""

STEPS_TO_A_RATE = 2
"""So many steps after the first one of a run must be done before a time left is told."""


@dataclass
class Pace:
    """What a step and a turn have taken, in seconds. `place`: chunk and step that were done last, at `last_s`."""

    last_s: float
    place: tuple[int, int] = (0, 0)
    first_s: float = 0.0
    steps_s: float = 0.0
    num_timed: int = 0
    turns_s: float = 0.0
    num_turns: int = 0

    def step(self, chunk: int, step: int, now_s: float) -> None:
        """A step is done. Where memory ran out its chunk begins again, in a slower form: then steps are timed anew."""
        took_s = now_s - self.last_s
        if self.place == (0, 0) or (chunk, step) <= self.place:
            self.first_s, self.steps_s, self.num_timed = took_s, 0.0, 0
        elif chunk == self.place[0]:
            self.steps_s, self.num_timed = self.steps_s + took_s, self.num_timed + 1
        else:
            self.turns_s, self.num_turns = self.turns_s + took_s, self.num_turns + 1
        self.place, self.last_s = (chunk, step), now_s

    def seconds_left(self, num_chunks: int, num_steps: int) -> float | None:
        """Until the end of the video, None while that can't be told."""
        if self.num_timed < min(STEPS_TO_A_RATE, num_steps - 1):
            return None
        (chunk, step), step_s = self.place, self.steps_s / max(self.num_timed, 1)
        if not self.num_turns and self.first_s > num_steps * step_s:
            return None
        turn_s = max(step_s, self.turns_s / self.num_turns if self.num_turns else self.first_s)
        num_steps_left = (num_steps - step) + (num_chunks - chunk) * (num_steps - 1)
        return num_steps_left * step_s + (num_chunks - chunk) * turn_s + (turn_s - step_s)  # the last: decoding alone


@dataclass
class RunProgress:
    """Turns the engine's news into `Progress` values. `on_gpu`: also watch the memory of the CUDA device."""

    listener: OnProgress
    on_gpu: bool = False
    ram_peak_bytes: int = 0
    _begun_s: float = field(default_factory=time.monotonic)
    _stages: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    _pace: Pace = field(default_factory=lambda: Pace(time.monotonic()))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._begun_s

    @property
    def stages_s(self) -> dict[str, float]:
        """Seconds that each stage took; the last one until now."""
        ends = [begun_s for _, begun_s in self._stages[1:]] + [time.monotonic()]
        return {name: round(end_s - begun_s, 3) for (name, begun_s), end_s in zip(self._stages, ends, strict=True)}

    @property
    def vram_peak_bytes(self) -> int | None:
        """Most memory that tensors have taken on the GPU, None without one."""
        if not self.on_gpu:
            return None
        import torch

        return torch.cuda.max_memory_allocated()

    def stage(self, name: str, message: str = "") -> None:
        """A part of the preparation begins. `name`: a key of `PREPARATION`."""
        self._stages.append((name, time.monotonic()))
        self._tell(Progress(stage=name, fraction=PREPARATION[name], message=message))

    def begin_video(self) -> None:
        """The networks are there; the first chunk begins."""
        self._pace = Pace(time.monotonic())
        self._stages.append(("video", self._pace.last_s))

    def step(self, chunk: int, num_chunks: int, step: int, num_steps: int) -> None:
        """A step of the video is done; all counted from 1."""
        per_chunk = num_steps + STEPS_OF_DECODING
        num_done, num_all = (chunk - 1) * per_chunk + step, num_chunks * per_chunk
        fraction = VIDEO_BEGINS + (1 - VIDEO_BEGINS) * num_done / num_all
        self._pace.step(chunk, step, time.monotonic())
        eta_s = self._pace.seconds_left(num_chunks, num_steps)
        self._tell(Progress("video", chunk, num_chunks, step, num_steps, fraction, eta_s=eta_s))

    def _tell(self, news: Progress) -> None:
        import psutil

        ram_bytes = psutil.Process().memory_info().rss
        self.ram_peak_bytes = max(self.ram_peak_bytes, ram_bytes)
        vram_bytes = None
        if self.on_gpu:
            import torch

            vram_bytes = torch.cuda.memory_allocated()
        self.listener(replace(news, elapsed_s=self.elapsed_s, ram_bytes=ram_bytes, vram_bytes=vram_bytes))
