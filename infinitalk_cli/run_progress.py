"""From what the engine says to what a viewer wants: the share done, the time left, the memory in use.

The preparation is short beside the video, and its parts differ between machines, so each gets a fixed small share; the
video's share is counted in steps, whose duration hardly varies, and gives the time left.
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


@dataclass
class RunProgress:
    """Turns the engine's news into `Progress` values. `on_gpu`: also watch the memory of the CUDA device."""

    listener: OnProgress
    on_gpu: bool = False
    ram_peak_bytes: int = 0
    _begun_s: float = field(default_factory=time.monotonic)
    _video_begun_s: float = field(default_factory=time.monotonic)
    _chunks_before: int = 0
    _stages: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])

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

    def begin_video(self, num_done: int = 0) -> None:
        """The networks are there; the first chunk begins. `num_done`: chunks that an earlier run has made."""
        self._video_begun_s, self._chunks_before = time.monotonic(), num_done
        self._stages.append(("video", self._video_begun_s))

    def step(self, chunk: int, num_chunks: int, step: int, num_steps: int) -> None:
        """A step of the video is done; all counted from 1."""
        per_chunk = num_steps + STEPS_OF_DECODING
        num_done, num_all = (chunk - 1) * per_chunk + step, num_chunks * per_chunk
        share, mine = num_done / num_all, num_done - self._chunks_before * per_chunk
        eta_s = (time.monotonic() - self._video_begun_s) * (num_all - num_done) / mine
        fraction = VIDEO_BEGINS + (1 - VIDEO_BEGINS) * share
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
