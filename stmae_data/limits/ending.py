"""Waiting for a child, and what its end means."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stmae_data.limits.confine import Limits

__all__ = ["Finished", "classify", "how_it_ended", "kill_group", "seconds_left", "wait_for"]

_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS}


@dataclass(frozen=True, slots=True)
class Finished:
    """How a child ended: `kind` is ok, error, crash, oom or timeout; `errors` is the tail of what it complained."""

    kind: str
    returncode: int
    errors: str
    value: Any = None


def how_it_ended(returncode: int) -> str:
    """The end of a process in words; `returncode` is negative for a signal."""
    if returncode == -signal.SIGXCPU:
        return "took too much processor time"
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"


def classify(returncode: int, *, is_late: bool, errors: str) -> str:
    if is_late or returncode == -signal.SIGXCPU:
        return "timeout"
    if returncode == 0:
        return "ok"
    if returncode < 0 and signal.Signals(-returncode) in _CRASHES:
        return "crash"
    if returncode == -signal.SIGKILL or "Cannot allocate memory" in errors or "MemoryError" in errors:
        return "oom"
    return "error"


def seconds_left(pid: int, limits: Limits, started: float) -> float:
    """Wall seconds that a child still has; 0 or less when its time is over."""
    waited = 0.0
    with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended, or this kernel does not tell
        for task in Path(f"/proc/{pid}/task").iterdir():
            waited = max(waited, int((task / "schedstat").read_bytes().split()[1]) / 1e9)  # run delay of the thread, ns
    return limits.wall_seconds + min(waited, 9 * limits.wall_seconds) - (time.monotonic() - started)


def wait_for(descriptor: int, seconds: float) -> bool:
    """Whether a descriptor became readable (or its process ended) within the time; `poll` takes any number, `select` those below 1024."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(seconds, 0) * 1000))


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
