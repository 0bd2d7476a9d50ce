"""A confined child that is kept for many short calls."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from stmae_data.limits.confine import Limits, confine, mapped_bytes, room_for
from stmae_data.limits.ending import Finished, classify, kill_group, seconds_left, wait_for

__all__ = ["Servant", "servant"]


@contextlib.contextmanager
def servant(function: Callable[[int], Any], *, limits: Limits, calls: int = 64) -> Iterator[Servant]:
    """A confined child kept for many short calls of `function(descriptor)`; it is gone at the end of the block.

    Forking costs more than a look at a header. What one file does to the child the next ones would meet, so decoding belongs into `call`
    and `run`. A child serves `calls` calls and ends with the first that fails; the processor limit is of all its calls together.
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
        """Run the function on a descriptor that the child is handed; never raises for what the child did.

        A failure is always that of a fresh child: one that has served others is ended, and its successor asked, so that what
        becomes of a file does not depend on the files before it.
        """
        while True:
            is_fresh = self._left <= 0
            ended = self._ask(descriptor)
            if ended.kind == "ok":
                return ended
            self.dismiss()
            if is_fresh:
                return ended

    def _ask(self, descriptor: int) -> Finished:
        if self._left <= 0:
            self.dismiss()
            self._hire()
        assert self._channel is not None
        self._left -= 1
        started = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died: reading tells
            socket.send_fds(self._channel, [b"."], [descriptor])
        is_late, data = _read_answer(self._channel, lambda: seconds_left(self._pid, self._limits, started))
        if data.endswith(_END_OF_ANSWER):
            answer = json.loads(data)
            if answer["error"] is None:
                return Finished("ok", 0, "", answer["value"])
            return Finished(classify(3, is_late=False, errors=answer["error"]), 3, answer["error"])
        returncode = self.dismiss(is_killed=is_late)
        text = data.decode(errors="replace")
        kind = classify(returncode, is_late=is_late, errors=text)
        return Finished("error" if kind == "ok" else kind, returncode, text)

    def dismiss(self, *, is_killed: bool = True) -> int:
        """End the child, if there is one; its exit code as `subprocess` gives it."""
        if self._channel is None:
            return 0
        if is_killed:
            kill_group(self._pid)
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
        confine(limits, mapped_bytes(), room_for(limits.open_files))
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
        if wait_for(channel.fileno(), left):
            try:
                piece = channel.recv(1 << 16)
            except ConnectionResetError:
                piece = b""
            if not piece:
                break
            data += piece
    return False, data
