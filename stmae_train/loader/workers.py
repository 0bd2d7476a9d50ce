"""Worker processes that decode: light, forked before training starts, each with its own bounded piece of shared memory.

Jobs go to workers in turn and come back in the order they were given, so the number of workers changes nothing but speed. A worker
that dies is replaced and its open jobs are done again in the same order; a clip that kills it again is damaged and not tried a third time.

A worker is a guarded child: no network, no new privileges, no core file, bounded memory, processor time by the clip, and it dies with its
parent. Stored bytes that we did not encode ourselves (other layouts than `layered-4`) are never decoded outside of one.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import signal
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np
from numpy.typing import NDArray

from stmae_data.errors import StmaeDataError, StorageError
from stmae_data.frames import Planes
from stmae_data.limits import Limits, allow_cpu_seconds, confine_worker, how_it_ended
from stmae_train.loader.ahead import Ahead, Job
from stmae_train.loader.source import ClipSource

__all__ = ["Damaged", "Decoded", "Job", "Spent", "decode_in_order"]

_SLOT_BYTES = 24 << 20  # four clips of 16 frames of 256 x 683 pictures; larger answers go through the pipe, slowly
_PREFETCH = 4  # jobs a worker may have open


@dataclass(frozen=True, slots=True)
class Damaged:
    """A sample that could not be decoded, and why."""

    clip_id: str
    reason: str


@dataclass(slots=True)
class Spent:
    """What decoding took so far: samples, and the seconds that whoever decoded them was at it."""

    samples: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count a sample."""
        self.samples += 1
        self.seconds += seconds


Picture = NDArray[np.uint8]  # RGB [H, W, 3]
Decoded = Planes | Picture | Damaged


def decode_in_order(
    sources: Sequence[ClipSource],
    jobs: Iterable[Job],
    *,
    workers: int,
    prefetch: int = _PREFETCH,
    spent: Spent | None = None,
) -> Generator[Decoded]:
    """Answers in the order of the jobs; with no workers they are decoded here, as long as all of them are of layered sets.

    Args:
        sources: what the jobs are of.
        jobs: what to decode; taken at most `workers * prefetch` ahead.
        workers: processes.
        prefetch: jobs that each may have open, and so the memory it may take.
        spent: counts every answer.

    Raises:
        StorageError: a store that samples stand on does not answer.
    """
    spent = spent or Spent()
    workers = workers or int(not all(source.is_layered for source in sources))
    pool = [_Worker(sources, prefetch, spent) for _ in range(workers)]
    # Threads that ask a store come after the forks.
    ahead = Ahead(sources) if any(source.store is not None for source in sources) else None
    given = iter(jobs) if ahead is None else ahead.jobs(jobs)
    try:
        for answer in _through(pool, given, prefetch) if pool else _here(sources, given, spent):
            yield answer
            if ahead is not None:
                ahead.done()
    finally:
        for worker in pool:
            worker.stop()
        if ahead is not None:
            ahead.close()


def _here(sources: Sequence[ClipSource], jobs: Iterator[Job], spent: Spent) -> Iterator[Decoded]:
    for job in jobs:
        started = time.perf_counter()
        answer = _decode(sources, job)
        spent.add(time.perf_counter() - started)
        yield answer


def _through(pool: Sequence[_Worker], jobs: Iterator[Job], prefetch: int) -> Iterator[Decoded]:
    turn, waiting = 0, deque[_Worker]()
    for job in jobs:
        if len(waiting) == len(pool) * prefetch:
            yield waiting.popleft().take()
        pool[turn].give(job)
        waiting.append(pool[turn])
        turn = (turn + 1) % len(pool)
    while waiting:
        yield waiting.popleft().take()


def _decode(sources: Sequence[ClipSource], job: Job) -> Decoded:
    source = sources[job.source]
    if job.problem:
        return Damaged(source.clip_id(job.row), job.problem)
    try:
        return source.picture(job.row) if source.is_of_pictures else source.planes(job.row, job.clips.tolist())
    except StorageError:
        raise  # of the store or the disk, not of the sample
    except StmaeDataError as error:
        return Damaged(source.clip_id(job.row), str(error))


class _Worker:
    """One child process, its open jobs, and the memory it answers through."""

    def __init__(self, sources: Sequence[ClipSource], prefetch: int, spent: Spent) -> None:
        self.sources, self.prefetch, self.spent = sources, prefetch, spent
        self.open: deque[Job] = deque()
        self.memory = mmap.mmap(-1, _SLOT_BYTES * prefetch)  # anonymous and shared with the fork
        self.taken = 0
        self.deaths: dict[tuple[int, int], int] = {}
        self.process, self.pipe = self._start()

    def _start(self) -> tuple[BaseProcess, Connection]:
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        process = context.Process(
            target=_serve, args=(self.sources, there, here, self.memory, self.prefetch), daemon=True
        )
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads. The child decodes with PyAV and NumPy alone and touches no lock of ours.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        there.close()
        return process, here

    def give(self, job: Job) -> None:
        self.open.append(job)
        self._send(job)

    def take(self) -> Decoded:
        """The answer to the oldest open job."""
        while True:
            try:
                answer = self.pipe.recv()
                break
            except (EOFError, ConnectionResetError):
                fatal = self._replace()
            if fatal is not None:
                return fatal
        job = self.open.popleft()
        seconds, *found = answer
        self.spent.add(seconds)
        if len(found) == 1:
            return Damaged(self._clip_id(job), found[0])
        indices, height, width, payload = found
        start = (self.taken % self.prefetch) * _SLOT_BYTES
        self.taken += 1
        data = np.frombuffer(payload if payload is not None else self.memory, dtype=np.uint8)
        return _unpack(data if payload is not None else data[start:], indices, height, width)

    def _replace(self) -> Damaged | None:
        """Start anew after a death, with the same jobs in the same order but for a first one that did it before."""
        job = self.open[0]
        key = job.source, job.row
        self.deaths[key] = self.deaths.get(key, 0) + 1
        self.process.join()
        fatal = None
        if self.deaths[key] > 1:
            self.open.popleft()
            how = how_it_ended(self.process.exitcode or 0)
            fatal = Damaged(self._clip_id(job), f"it ended the process that decoded it twice: {how}")
        self.pipe.close()
        self.taken = 0
        self.process, self.pipe = self._start()
        for again in self.open:
            self._send(again)
        return fatal

    def _send(self, job: Job) -> None:
        index = self.sources[job.source].index
        seconds = float(index.num_frames[job.row]) / max(float(index.fps[job.row]), 1.0)
        asked = job.source, job.row, job.clips.tolist(), job.problem, Limits.for_seconds(seconds).cpu_seconds
        with contextlib.suppress(BrokenPipeError):  # a death is noticed in `take`, which knows the clip
            self.pipe.send(asked)

    def _clip_id(self, job: Job) -> str:
        return self.sources[job.source].clip_id(job.row)

    def stop(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()
        self.memory.close()


def _serve(
    sources: Sequence[ClipSource], pipe: Connection, other_end: Connection, memory: mmap.mmap, prefetch: int
) -> None:
    """The child: answer jobs until the parent closes the pipe or dies."""
    other_end.close()  # else the pipe would never end when the parent dies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what a Ctrl-C means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    confine_worker(Limits())
    slot = 0
    while True:
        try:
            source, row, clips, problem, cpu_seconds = pipe.recv()
        except EOFError:
            os._exit(0)
        allow_cpu_seconds(cpu_seconds)
        started = time.perf_counter()
        job = Job(source, row, np.array(clips, dtype=np.int64), problem)
        sources[source].trust(row)  # the parent holds it: `Ahead`
        try:
            answer = _decode(sources, job)
        except MemoryError:
            answer = Damaged("", "decoding it takes more memory than a decoder may have")
        seconds = time.perf_counter() - started
        if isinstance(answer, Damaged):
            pipe.send((seconds, answer.reason))
            continue
        _reply(pipe, answer, memory, slot, seconds)
        slot = (slot + 1) % prefetch


def _reply(pipe: Connection, answer: Planes | Picture, memory: mmap.mmap, slot: int, seconds: float) -> None:
    parts: tuple[NDArray[np.uint8], ...]
    if isinstance(answer, Planes):
        parts = (answer.y, answer.u, answer.v)
        shape = (seconds, list(answer.position), *answer.y.shape[1:])
    else:
        parts = (answer,)
        shape = (seconds, [], *answer.shape[:2])  # no frame numbers: a picture
    if sum(part.nbytes for part in parts) > _SLOT_BYTES:
        pipe.send((*shape, b"".join(part.tobytes() for part in parts)))
        return
    room, start = np.frombuffer(memory, dtype=np.uint8), slot * _SLOT_BYTES
    for part in parts:
        room[start : start + part.size].reshape(part.shape)[:] = part
        start += part.size
    pipe.send((*shape, None))


def _unpack(data: NDArray[np.uint8], indices: list[int], height: int, width: int) -> Planes | Picture:
    if not indices:
        return data[: height * width * 3].reshape(height, width, 3).copy()
    frames = len(indices)
    luma, chroma = frames * height * width, frames * -(-height // 2) * -(-width // 2)
    half = (frames, -(-height // 2), -(-width // 2))
    # Copied: the worker fills this slot again as soon as it gets a new job.
    y = data[:luma].reshape(frames, height, width).copy()
    u = data[luma : luma + chroma].reshape(half).copy()
    v = data[luma + chroma : luma + 2 * chroma].reshape(half).copy()
    return Planes(y, u, v, {index: row for row, index in enumerate(indices)})
