"""What a loop measures about itself, and the signals that ask it to stop."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch

__all__ = ["Meter", "StepRecord", "StopSignals", "Stopwatch", "peak_memory_bytes"]

LOGGER = logging.getLogger("stmae.train")


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One interval of training: the line that is shown and the record in `log.jsonl` are both this value."""

    step: int
    steps: int
    clips: int
    loss: float | None
    lr: float
    grad_norm: float | None
    clips_per_second: float
    wait_share: float
    mfu: float | None
    memory_bytes: int
    eta_seconds: float
    wait_rank: int = 0  # the process that waited longest, whose share `wait_share` is

    def values(self) -> dict[str, Any]:
        """The record of `log.jsonl`."""
        return asdict(self)

    def __str__(self) -> str:
        loss = "skipped" if self.loss is None else f"{self.loss:.4f}"
        parts = [f"step {self.step:06d}/{self.steps:06d}", f"loss {loss}", f"lr {self.lr:.1e}"]
        parts += [f"clips/s {self.clips_per_second:.0f}", f"wait {self.wait_share:.0%}"]
        parts[-1] += f" (rank {self.wait_rank})" if self.wait_rank else ""
        parts += [] if self.mfu is None else [f"mfu {self.mfu:.0%}"]
        parts += [f"mem {self.memory_bytes / 2**30:.1f} GiB", f"eta {_span(self.eta_seconds)}"]
        return " | ".join(parts)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"


class Stopwatch:
    """Processor, wall and waiting seconds of a stretch of work; monotonic, so clock changes do nothing."""

    def __init__(self) -> None:
        self.started, self.cpu_started = time.monotonic(), _cpu_seconds()
        self.waited = 0.0

    @property
    def seconds(self) -> float:
        """Wall seconds so far."""
        return time.monotonic() - self.started

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds of this process and its children so far, of those that run too."""
        return _cpu_seconds() - self.cpu_started

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.waited += time.monotonic() - start


def _cpu_seconds() -> float:
    # In this order: a child that ends in between is counted once, since nobody but us takes its end.
    running = sum(_cpu_seconds_of(child.pid) for child in multiprocessing.active_children())
    spent = os.times()
    return running + spent.user + spent.system + spent.children_user + spent.children_system


def _cpu_seconds_of(pid: int | None) -> float:
    """Of another process and its ended children; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # its name may hold anything
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


class Meter:
    """Speed over the interval since the last record."""

    def __init__(self, *, steps: int, clips_per_step: int, flops_per_clip: float, peak_flops: float | None) -> None:
        self.steps, self.clips_per_step = steps, clips_per_step
        self.flops_per_clip, self.peak_flops = flops_per_clip, peak_flops
        self.watch = Stopwatch()
        self._step, self._seconds, self._waited = -1, 0.0, 0.0

    def begin(self, step: int) -> None:
        """Start measuring before step `step`."""
        self._step, self._seconds, self._waited = step, self.watch.seconds, self.watch.waited

    def record(self, step: int, *, loss: float | None, lr: float, grad_norm: float | None) -> StepRecord:
        """The record of the interval that ends after `step` steps in all; a new interval begins."""
        seconds = max(self.watch.seconds - self._seconds, 1e-9)
        speed = (step - self._step) * self.clips_per_step / seconds
        record = StepRecord(
            step=step,
            steps=self.steps,
            clips=step * self.clips_per_step,
            loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            clips_per_second=round(speed, 2),
            wait_share=round((self.watch.waited - self._waited) / seconds, 4),
            mfu=None if self.peak_flops is None else round(speed * self.flops_per_clip / self.peak_flops, 4),
            memory_bytes=peak_memory_bytes(),
            eta_seconds=round((self.steps - step) * self.clips_per_step / speed, 1),
        )
        self.begin(step)
        return record


def peak_memory_bytes() -> int:
    """Peak memory: of the accelerator where one is used, else resident memory of this process."""
    if torch.cuda.is_available() and (used := int(torch.cuda.max_memory_allocated())):
        return used
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class StopSignals:
    """SIGTERM and SIGINT ask the loop to stop after a checkpoint.

    Under a launcher the same signal may come twice, from a scheduler that tells every process and from the launcher that passes it on: the
    second one says nothing new. At a terminal a second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        if number == signal.SIGINT and "LOCAL_WORLD_SIZE" not in os.environ:  # no launcher, which would pass it on
            signal.signal(number, signal.SIG_DFL)
