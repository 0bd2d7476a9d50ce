"""What a child may do and use, put on in the child itself between fork and work."""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import os
import resource
import signal
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Limits",
    "allow_cpu_seconds",
    "confine",
    "confine_worker",
    "die_with_parent",
    "has_network_sandbox",
    "mapped_bytes",
    "room_for",
]

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may use.

    Its wall clock is twice the processor limit. Time that it was ready to run but had no processor does not count, up to ten times the
    limit: what becomes of a clip must not depend on what else the machine does.
    """

    cpu_seconds: float = 20.0
    address_space_bytes: int = 2 << 30
    file_bytes: int = 1 << 30
    open_files: int = 64
    has_network: bool = False

    @property
    def wall_seconds(self) -> float:
        """Deadline by the parent's monotonic clock."""
        return 2 * self.cpu_seconds

    @classmethod
    def for_seconds(cls, planned_seconds: float) -> Limits:
        """Limits for decoding `planned_seconds` of video: processor max(20 s, 0.6 x planned seconds)."""
        return cls(cpu_seconds=max(20.0, 0.6 * planned_seconds))


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def confine(limits: Limits, inherited_bytes: int = 0, open_files: int | None = None) -> None:
    """In the child, before anything big: own session, limits, no new privileges, no network."""
    _cut_off(0 if limits.has_network else _CLONE_NEWUSER | _CLONE_NEWNET)
    cpu = int(limits.cpu_seconds + 0.999)
    address_space = limits.address_space_bytes + inherited_bytes
    open_files = min(open_files or limits.open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    for what, soft, hard in (
        (resource.RLIMIT_FSIZE, limits.file_bytes, limits.file_bytes),
        (resource.RLIMIT_NOFILE, open_files, open_files),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_CPU, cpu, cpu + 2),
        (resource.RLIMIT_AS, address_space, address_space),
    ):
        resource.setrlimit(what, (soft, hard))


def _cut_off(namespaces: int) -> None:
    """Own session and namespaces, no new privileges, dead with the parent."""
    os.setsid()
    die_with_parent()
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if namespaces:
        _LIBC.unshare(namespaces)  # refused on some hosts; has_network_sandbox() tells the report


def confine_worker(limits: Limits) -> None:
    """In a forked child that works for as long as its parent asks: what `limits` says, but for the processor and open files.

    Such a child has its time by the piece: `allow_cpu_seconds` before each. It opens files by name, so where a namespace of its own would
    cost root the right to read them it keeps the network if that cannot be left alone.
    """
    own = _CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWUSER | _CLONE_NEWNET
    _cut_off(0 if limits.has_network else own)
    address_space = limits.address_space_bytes + mapped_bytes()
    for what, most in (
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, address_space),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def allow_cpu_seconds(seconds: float) -> None:
    """Let this process have so much processor time from now on, then be ended by SIGXCPU."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    most = math.ceil(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def mapped_bytes() -> int:
    """What a forked child inherits as address space: its limit is counted on top of that."""
    with open("/proc/self/statm", "rb") as stream:  # noqa: PTH123 - runs between fork and work, keep it plain
        return int(stream.read().split()[0]) * resource.getpagesize()


def room_for(open_files: int) -> int:
    """The limit under which a forked child can open so many files beside those that it inherits."""
    taken = {int(each.name) for each in Path("/proc/self/fd").iterdir()}
    return (
        next(itertools.islice((number for number in itertools.count() if number not in taken), open_files - 1, None))
        + 1
    )


@functools.cache
def has_network_sandbox() -> bool:
    """Whether children can be cut off from the network here."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
