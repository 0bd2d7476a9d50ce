"""The one process wrapper: limits, no network, deadline, kill the group, a classified end.

Every outside program and every risky piece of decoding runs through `run` (a program) or `call` (a function in a forked child).
Limits and their sources: RELIABILITY §2.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from stmae_data.limits.confine import (
    Limits,
    allow_cpu_seconds,
    confine,
    confine_worker,
    die_with_parent,
    has_network_sandbox,
    mapped_bytes,
    room_for,
)
from stmae_data.limits.ending import Finished, classify, how_it_ended, kill_group, seconds_left, wait_for
from stmae_data.limits.servant import Servant, servant

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
            preexec_fn=functools.partial(confine, limits),
        )
        is_late, started = False, time.monotonic()
        try:
            # It wakes at once, where subprocess would look every so often, up to 50 ms late.
            end = os.pidfd_open(child.pid)
            try:
                while child.poll() is None and not is_late:
                    left = seconds_left(child.pid, limits, started)
                    is_late = left <= 0
                    wait_for(end, left)
            finally:
                os.close(end)
        finally:
            kill_group(child.pid)
            child.wait()
        size = complaints.seek(0, os.SEEK_END)
        complaints.seek(max(0, size - 8192))
        errors = complaints.read().decode(errors="replace")
    return Finished(classify(child.returncode, is_late=is_late, errors=errors), child.returncode, errors)


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
    is_late, data = _read_until(reading, lambda: seconds_left(pid, limits, started))
    if is_late:
        kill_group(pid)
    returncode = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text = data.decode(errors="replace")
    kind = classify(returncode, is_late=is_late, errors=text)
    if kind == "ok":
        return Finished(kind, returncode, "", json.loads(text))
    return Finished(kind, returncode, text)


def _child(function: Callable[..., Any], arguments: tuple[Any, ...], writing: int, limits: Limits) -> NoReturn:
    code = 0
    try:
        confine(limits, mapped_bytes(), room_for(limits.open_files))
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
            if wait_for(stream.fileno(), left):
                piece = stream.read(1 << 16)
                if not piece:
                    return False, b"".join(pieces)
                pieces.append(piece)
