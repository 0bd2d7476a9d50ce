"""Job k of n: several processes, on one machine or many, build one set together, each its own share of the planned shards.

Two files tell them apart. `meta/LOCK`: a whole build holds it alone, a job together with other jobs (flock). `meta/LOCK.jobs`: a job holds
its own share of it (a range of bytes), so that two jobs whose shares overlap cannot run at once. Planning and sealing are done by one job at
a time, behind one more byte. Two files, because NFS keeps an flock as a range over the whole file, which would meet those of other jobs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from stmae_data import files
from stmae_data.errors import Busy
from stmae_data.records import Job

__all__ = ["job_lock"]

_SHARES = 1 << 40  # byte ranges as fine as any number of jobs; they overlap where shares do, also of other n
_STEP = 1 << 41
_PAUSE_SECONDS = 0.05


@contextlib.contextmanager
def job_lock(path: Path, job: Job, *, what: str) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Hold a job's share of the lock at `path`; the kernel frees it when we die.

    Yields:
        A function that gives a context in which no other job is: it waits for its turn.

    Raises:
        Busy: a whole build, or a job with an overlapping share, is at work.
    """
    with contextlib.ExitStack() as stack:
        whole = _opened(path, stack)
        try:
            fcntl.flock(whole, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = (_holders(whole) or ["unknown"])[0]
            raise Busy(
                f"{what} is being written by process {holder}; wait for it to end, then run the same command again."
            ) from error
        descriptor = _opened(path.with_name(f"{path.name}.jobs"), stack)
        if not _try_range(descriptor, *job.range_of(_SHARES)):
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
            others = [line for line in _holders(descriptor) if not line.endswith(f" {job}")]
            for each, text in (
                (descriptor, "".join(f"{line}\n" for line in [*others, f"{os.getpid()} {job}"])),
                (whole, f"{os.getpid()}\n"),  # whom a whole build has to wait for
            ):
                os.ftruncate(each, 0)
                os.pwrite(each, text.encode(), 0)
        yield step


def _opened(path: Path, stack: contextlib.ExitStack) -> int:
    with files.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    stack.callback(os.close, descriptor)
    return descriptor


def _holders(descriptor: int) -> list[str]:
    """Lines `process job`; of a whole build its one process."""
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
