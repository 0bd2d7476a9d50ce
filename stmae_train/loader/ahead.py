"""Jobs for decoders. Samples that stand on a store come here while those before them are decoded, and stay until they have been."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stmae_data.errors import SetError
from stmae_data.shards import Pin
from stmae_train.loader.source import ClipSource

__all__ = ["Ahead", "Job"]

Ints = NDArray[np.int64]
_Coming = Future[Pin | None]

_REQUESTS = 16  # that a store is asked at a time, and samples that may be here before a decoder wants them


@dataclass(frozen=True, slots=True)
class Job:
    """Decode the union of `clips` [K, T] out of one sample; `problem` says why that cannot be, where it is known already."""

    source: int
    row: int
    clips: Ints
    problem: str = ""


class Ahead:
    """Brings the samples of jobs before the jobs are handed on. Workers then need no network, and nothing that they read is removed.

    Its threads are daemons: a store that does not answer holds up no exit.
    """

    def __init__(self, sources: Sequence[ClipSource]) -> None:
        self.sources = sources
        self._asked: queue.SimpleQueue[tuple[_Coming, Job] | None] = queue.SimpleQueue()
        self._coming: deque[_Coming] = deque()
        self._held: deque[Pin | None] = deque()
        for _ in range(_REQUESTS):
            threading.Thread(target=self._work, daemon=True).start()

    def jobs(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """The same jobs in the same order, each once its sample is here.

        Raises:
            StorageError: the store does not answer, or the disk is full.
        """
        waiting: deque[Job] = deque()
        for job in jobs:
            self._coming.append(Future())
            self._asked.put((self._coming[-1], job))
            waiting.append(job)
            if len(waiting) > _REQUESTS:
                yield self._arrived(waiting.popleft())
        while waiting:
            yield self._arrived(waiting.popleft())

    def done(self) -> None:
        """The oldest job has been answered: its sample may go."""
        pin = self._held.popleft()
        if pin is not None:
            pin.close()

    def close(self) -> None:
        """Let everything go; what is on its way is let go when it arrives."""
        for coming in self._coming:
            if not coming.cancel():
                coming.add_done_callback(_let_go)
        for _ in range(_REQUESTS):
            self._asked.put(None)
        while self._held:
            self.done()

    def _arrived(self, job: Job) -> Job:
        try:
            pin = self._coming.popleft().result()
        except SetError as error:
            job, pin = replace(job, problem=str(error)), None
        self._held.append(pin)
        return job

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            coming, job = asked
            if coming.set_running_or_notify_cancel():
                try:
                    coming.set_result(self.sources[job.source].pin(job.row))
                except BaseException as error:  # raised where the sample is waited for
                    coming.set_exception(error)


def _let_go(coming: _Coming) -> None:
    pin = None if coming.exception() is not None else coming.result()
    if pin is not None:
        pin.close()
