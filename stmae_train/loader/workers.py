"""Worker processes that decode: light, forked before training starts, each with its own bounded piece of shared memory.

Jobs go to workers in turn and come back in the order they were given, so the number of workers changes nothing but speed. A worker
that dies is replaced once and its open jobs are done again in the same order; if the same clip kills it again, that clip is named.
"""

from __future__ import annotations

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

from stmae_data.errors import StmaeDataError
from stmae_data.frames import Planes
from stmae_train.errors import DataMismatch
from stmae_train.loader.source import ClipSource

__all__ = ["Damaged", "Decoded", "Job", "Spent", "decode_in_order"]

Ints = NDArray[np.int64]

_SLOT_BYTES = 24 << 20  # four clips of 16 frames of 256 x 683 pictures; larger answers go through the pipe, slowly
_PREFETCH = 4  # jobs a worker may have open


@dataclass(frozen=True, slots=True)
class Job:
    """Decode the union of `clips` [K, T] out of one sample."""

    source: int
    row: int
    clips: Ints


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
    """Answers in the order of the jobs; with no workers they are decoded here.

    Args:
        sources: what the jobs are of.
        jobs: what to decode; taken at most `workers * prefetch` ahead.
        workers: processes.
        prefetch: jobs that each may have open, and so the memory it may take.
        spent: counts every answer.

    Raises:
        DataMismatch: a clip killed two workers in a row.
    """
    spent = spent or Spent()
    if workers == 0:
        for job in jobs:
            started = time.perf_counter()
            answer = _decode(sources, job)
            spent.add(time.perf_counter() - started)
            yield answer
        return
    pool = [_Worker(sources, prefetch, spent) for _ in range(workers)]
    try:
        yield from _through(pool, iter(jobs), prefetch)
    finally:
        for worker in pool:
            worker.stop()


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
    try:
        return source.picture(job.row) if source.is_of_pictures else source.planes(job.row, job.clips.tolist())
    except StmaeDataError as error:
        return Damaged(str(source.index.clip_ids[job.row]), str(error))


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
        try:
            self.pipe.send((job.source, job.row, job.clips.tolist()))
        except BrokenPipeError:
            return  # noticed in `take`, which knows the clip

    def take(self) -> Decoded:
        """The answer to the oldest open job."""
        while True:
            try:
                answer = self.pipe.recv()
                break
            except (EOFError, ConnectionResetError):
                self._replace()
        job = self.open.popleft()
        seconds, *found = answer
        self.spent.add(seconds)
        if len(found) == 1:
            return Damaged(str(self.sources[job.source].index.clip_ids[job.row]), found[0])
        indices, height, width, payload = found
        start = (self.taken % self.prefetch) * _SLOT_BYTES
        self.taken += 1
        data = np.frombuffer(payload if payload is not None else self.memory, dtype=np.uint8)
        return _unpack(data if payload is not None else data[start:], indices, height, width)

    def _replace(self) -> None:
        """Start anew after a death, with the same jobs in the same order.

        Raises:
            DataMismatch: this clip did it before.
        """
        job = self.open[0]
        key = job.source, job.row
        self.deaths[key] = self.deaths.get(key, 0) + 1
        self.process.join()
        if self.deaths[key] > 1:
            clip_id = self.sources[job.source].index.clip_ids[job.row]
            raise DataMismatch(
                f"Clip {clip_id} ended the worker that decoded it twice (exit code {self.process.exitcode}); remove it: "
                f"stmae-data remove --ids {clip_id}, or go on with --skip-damaged."
            )
        self.pipe.close()
        self.taken = 0
        self.process, self.pipe = self._start()
        for again in self.open:
            self.pipe.send((again.source, again.row, again.clips.tolist()))

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
    slot = 0
    while True:
        try:
            source, row, clips = pipe.recv()
        except EOFError:
            os._exit(0)
        started = time.perf_counter()
        answer = _decode(sources, Job(source, row, np.array(clips, dtype=np.int64)))
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
