"""The one process wrapper: limits, no network, deadline, kill the group, a classified end.

Every outside program and every risky piece of decoding runs through `run` (a program) or `call` (a function in a forked child).
Limits and their sources: RELIABILITY §2.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import json
import math
import os
import resource
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

__all__ = [
    "Finished",
    "Limits",
    "Servant",
    "allow_cpu_seconds",
    "call",
    "confine_worker",
    "die_with_parent",
    "has_network_sandbox",
    "how_it_ended",
    "run",
    "servant",
]

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS}


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


@dataclass(frozen=True, slots=True)
class Finished:
    """How a child ended: `kind` is ok, error, crash, oom or timeout; `errors` is the tail of what it complained."""

    kind: str
    returncode: int
    errors: str
    value: Any = None


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _confine(limits: Limits, inherited_bytes: int = 0, open_files: int | None = None) -> None:
    """In the child, before anything big: own session, limits, no new privileges, no network."""
    os.setsid()
    die_with_parent()
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if not limits.has_network:
        _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)  # refused on some hosts; has_network_sandbox() tells the report
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


def confine_worker(limits: Limits) -> None:
    """In a forked child that works for as long as its parent asks: what `limits` says, but for the processor and open files.

    Such a child has its time by the piece: `allow_cpu_seconds` before each. It opens files by name, so where a namespace of its own would
    cost root the right to read them it keeps the network if that cannot be left alone.
    """
    os.setsid()
    die_with_parent()
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if not limits.has_network:
        _LIBC.unshare(_CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWUSER | _CLONE_NEWNET)
    address_space = limits.address_space_bytes + _mapped_bytes()
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


def how_it_ended(returncode: int) -> str:
    """The end of a process in words; `returncode` is negative for a signal."""
    if returncode == -signal.SIGXCPU:
        return "took too much processor time"
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"


def _mapped_bytes() -> int:
    """What a forked child inherits as address space: its limit is counted on top of that."""
    with open("/proc/self/statm", "rb") as stream:  # noqa: PTH123 - runs between fork and work, keep it plain
        return int(stream.read().split()[0]) * resource.getpagesize()


def _room_for(open_files: int) -> int:
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


def _classify(returncode: int, *, is_late: bool, errors: str) -> str:
    if is_late or returncode == -signal.SIGXCPU:
        return "timeout"
    if returncode == 0:
        return "ok"
    if returncode < 0 and signal.Signals(-returncode) in _CRASHES:
        return "crash"
    if returncode == -signal.SIGKILL or "Cannot allocate memory" in errors or "MemoryError" in errors:
        return "oom"
    return "error"


def _seconds_left(pid: int, limits: Limits, started: float) -> float:
    """Wall seconds that a child still has; 0 or less when its time is over."""
    waited = 0.0
    with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended, or this kernel does not tell
        for task in Path(f"/proc/{pid}/task").iterdir():
            waited = max(waited, int((task / "schedstat").read_bytes().split()[1]) / 1e9)  # run delay of the thread, ns
    return limits.wall_seconds + min(waited, 9 * limits.wall_seconds) - (time.monotonic() - started)


def _wait_for(descriptor: int, seconds: float) -> bool:
    """Whether a descriptor became readable (or its process ended) within the time; `poll` takes any number, `select` those below 1024."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(seconds, 0) * 1000))


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def run(
    arguments: Sequence[str], *, limits: Limits, pass_fds: Sequence[int] = (), environment: dict[str, str] | None = None
) -> Finished:
    """Run a program as a list of arguments, never through a shell; stdin and stdout are closed, data goes through `pass_fds`.

    Args:
        arguments: program and arguments.
        limits: what it may use.
        pass_fds: descriptors the child keeps, under the same numbers.
        environment: variables beside PATH; nothing else is inherited.

    Returns:
        How it ended; never raises for what the child did.
    """
    with tempfile.TemporaryFile() as complaints:
        child = subprocess.Popen(
            list(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
            pass_fds=tuple(pass_fds),
            env={"PATH": os.environ.get("PATH", os.defpath), **(environment or {})},
            preexec_fn=functools.partial(_confine, limits),
        )
        is_late, started = False, time.monotonic()
        try:
            end = os.pidfd_open(
                child.pid
            )  # wakes at once, where subprocess would look every so often, up to 50 ms late
            try:
                while child.poll() is None and not is_late:
                    left = _seconds_left(child.pid, limits, started)
                    is_late = left <= 0
                    _wait_for(end, left)
            finally:
                os.close(end)
        finally:
            _kill_group(child.pid)
            child.wait()
        size = complaints.seek(0, os.SEEK_END)
        complaints.seek(max(0, size - 8192))
        errors = complaints.read().decode(errors="replace")
    return Finished(_classify(child.returncode, is_late=is_late, errors=errors), child.returncode, errors)


def call(function: Callable[..., Any], *arguments: Any, limits: Limits) -> Finished:
    """Run `function(*arguments)` in a forked, confined child and bring back its JSON-able result.

    An exception of the child arrives as kind `error` with `errors` = "TypeName: text". The child must not start threads.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(function, arguments, writing, limits)
    os.close(writing)
    started = time.monotonic()
    is_late, data = _read_until(reading, lambda: _seconds_left(pid, limits, started))
    if is_late:
        _kill_group(pid)
    returncode = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text = data.decode(errors="replace")
    kind = _classify(returncode, is_late=is_late, errors=text)
    if kind == "ok":
        return Finished(kind, returncode, "", json.loads(text))
    return Finished(kind, returncode, text)


def _child(function: Callable[..., Any], arguments: tuple[Any, ...], writing: int, limits: Limits) -> NoReturn:
    code = 0
    try:
        _confine(limits, _mapped_bytes(), _room_for(limits.open_files))
        text = json.dumps(function(*arguments), allow_nan=False)
    except BaseException as error:  # everything a child can raise is told to the parent, nothing is swallowed
        text, code = f"{type(error).__name__}: {error}", 3
    try:
        with os.fdopen(writing, "wb") as stream:
            stream.write(text.encode())
    except BaseException:  # the parent is gone or the pipe broke: only the exit code can tell
        code = 4
    os._exit(code)


def _read_until(descriptor: int, seconds_left: Callable[[], float]) -> tuple[bool, bytes]:
    pieces: list[bytes] = []
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        while True:
            left = seconds_left()
            if left <= 0:
                return True, b"".join(pieces)
            if _wait_for(stream.fileno(), left):
                piece = stream.read(1 << 16)
                if not piece:
                    return False, b"".join(pieces)
                pieces.append(piece)


@contextlib.contextmanager
def servant(function: Callable[[int], Any], *, limits: Limits, calls: int = 64) -> Iterator[Servant]:
    """A confined child kept for many short calls of `function(descriptor)`; it is gone at the end of the block.

    Forking costs some 6 ms, more than a look at a header. What one file does to the child the next ones would meet, so decoding belongs
    into `call` and `run`; a child serves `calls` calls, and one that dies takes its own call along and no other.
    """
    kept = Servant(function, limits, calls)
    try:
        yield kept
    finally:
        kept.dismiss()


class Servant:
    """The parent's side of `servant`."""

    def __init__(self, function: Callable[[int], Any], limits: Limits, calls: int) -> None:
        self._function, self._limits, self._calls = function, limits, calls
        self._pid, self._left = 0, 0
        self._channel: socket.socket | None = None

    def call(self, descriptor: int) -> Finished:
        """Run the function on a descriptor that the child is handed; never raises for what the child did."""
        if self._left <= 0:
            self.dismiss()
            self._hire()
        assert self._channel is not None
        self._left -= 1
        started = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died: reading tells
            socket.send_fds(self._channel, [b"."], [descriptor])
        is_late, data = _read_answer(self._channel, lambda: _seconds_left(self._pid, self._limits, started))
        if data.endswith(_END_OF_ANSWER):
            answer = json.loads(data)
            if answer["error"] is None:
                return Finished("ok", 0, "", answer["value"])
            return Finished(_classify(3, is_late=False, errors=answer["error"]), 3, answer["error"])
        returncode = self.dismiss(is_killed=is_late)
        text = data.decode(errors="replace")
        kind = _classify(returncode, is_late=is_late, errors=text)
        return Finished("error" if kind == "ok" else kind, returncode, text)

    def dismiss(self, *, is_killed: bool = True) -> int:
        """End the child, if there is one; its exit code as `subprocess` gives it."""
        if self._channel is None:
            return 0
        if is_killed:
            _kill_group(self._pid)
        self._channel.close()
        self._channel, self._left = None, 0
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _hire(self) -> None:
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            _serve(self._function, theirs, self._limits)
        theirs.close()
        self._channel, self._left = ours, self._calls


_END_OF_ANSWER = b"\n"


def _serve(function: Callable[[int], Any], channel: socket.socket, limits: Limits) -> NoReturn:
    try:
        _confine(limits, _mapped_bytes(), _room_for(limits.open_files))
        while True:
            _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
            if not descriptors:
                os._exit(0)
            value, error = None, None
            try:
                value = function(descriptors[0])
            except Exception as raised:
                error = f"{type(raised).__name__}: {raised}"
            os.close(descriptors[0])
            channel.sendall(json.dumps({"value": value, "error": error}, allow_nan=False).encode() + _END_OF_ANSWER)
    except BaseException:  # confinement failed, memory is out or the parent is gone: only the exit code can tell
        os._exit(4)


def _read_answer(channel: socket.socket, seconds_left: Callable[[], float]) -> tuple[bool, bytes]:
    data = b""
    while not data.endswith(_END_OF_ANSWER):
        left = seconds_left()
        if left <= 0:
            return True, data
        if _wait_for(channel.fileno(), left):
            try:
                piece = channel.recv(1 << 16)
            except ConnectionResetError:
                piece = b""
            if not piece:
                break
            data += piece
    return False, data
