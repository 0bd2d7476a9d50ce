"""Job k of n: several processes, on one machine or many, build one set together, each its own share of the planned shards.

One file tells them apart, `meta/LOCK`: a whole build holds all of it, a job holds it together with other jobs (flock, shared) and its own
share of it alone (a range of bytes), so that two jobs whose shares overlap cannot run at once. Planning and sealing are done by one job at
a time, behind one more byte.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from stmae_data import files
from stmae_data.errors import Busy, UsageError

__all__ = ["Job", "job_lock"]

_SHARES = 1 << 40  # byte ranges as fine as any number of jobs
_STEP = 1 << 41
_MAX_JOBS = 100_000
_PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Job:
    """Job `number` of `count`, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Job:
        """Read `2/4`.

        Raises:
            UsageError: it is no job.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]) <= _MAX_JOBS:
            raise UsageError(f"{text!r} is not a job; wanted k/n with 1 <= k <= n <= {_MAX_JOBS}, as in 2/4.")
        return cls(int(match[1]), int(match[2]))

    def share(self, names: Sequence[str]) -> list[str]:
        """This job's part of a list: the parts of all n jobs are disjoint and make up the whole."""
        return list(names[slice(*self._range(len(names)))])

    def bytes_of_lock(self) -> tuple[int, int]:
        """Where the job's own range of the lock begins and ends: ranges overlap where shares do, also of other n."""
        return self._range(_SHARES)

    def _range(self, size: int) -> tuple[int, int]:
        return (self.number - 1) * size // self.count, self.number * size // self.count

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@contextlib.contextmanager
def job_lock(path: Path, job: Job, *, what: str) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Hold a job's share of the lock at `path`; the kernel frees it when we die.

    Yields:
        A function that gives a context in which no other job is: it waits for its turn.

    Raises:
        Busy: a whole build, or a job with an overlapping share, is at work.
    """
    with files.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = (_holders(descriptor) or ["unknown"])[0].partition(" ")[0]
            raise Busy(
                f"{what} is being written by process {holder}; wait for it to end, then run the same command again."
            ) from error
        if not _try_range(descriptor, *job.bytes_of_lock()):
            mine = [line.partition(" ")[0] for line in _holders(descriptor) if line.endswith(f" {job}")]
            who = f"by process {mine[0]}" if mine else "by a job whose share overlaps it"
            raise Busy(
                f"Job {job} of {what} is being built {who}; wait for it to end, then run the same command again."
            )

        @contextlib.contextmanager
        def step() -> Iterator[None]:
            while not _try_range(descriptor, _STEP, _STEP + 1):
                time.sleep(_PAUSE_SECONDS)
            try:
                yield
            finally:
                _set_range(descriptor, fcntl.F_UNLCK, _STEP, _STEP + 1)

        with step():
            others = [line for line in _holders(descriptor) if " " in line and not line.endswith(f" {job}")]
            text = "".join(f"{line}\n" for line in [*others, f"{os.getpid()} {job}"])
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text.encode(), 0)
        yield step
    finally:
        os.close(descriptor)


def _holders(descriptor: int) -> list[str]:
    """Lines `process job`, or the one process of a whole build."""
    return os.pread(descriptor, 1 << 20, 0).decode(errors="replace").splitlines()


def _try_range(descriptor: int, start: int, end: int) -> bool:
    try:
        _set_range(descriptor, fcntl.F_WRLCK, start, end)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _set_range(descriptor: int, kind: int, start: int, end: int) -> None:
    # struct flock: type, whence, start, length, process; these locks belong to the open file, not to the process.
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", kind, os.SEEK_SET, start, end - start, 0))
