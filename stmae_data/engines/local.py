"""A pool of small local processes that take tasks as JSON lines and give back small receipts.

A worker is a fresh Python without torch, with one thread, that dies with its parent. A worker that dies gives its task back; the task
goes to a new worker, three times at most. The same tasks give the same bytes whichever worker ran them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import stmae_data.errors as errors
from stmae_data.errors import StmaeDataError
from stmae_data.limits import die_with_parent

__all__ = ["MAX_DEATHS", "Tick", "as_error", "run_locally", "work"]

Tick = Callable[[int], None]
"""Called by a task with the number of clips it has just finished."""

MAX_DEATHS = 3
"""Workers a task may cost before it is given up."""


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    task: tuple[int, Mapping[str, Any], int] | None = None  # number, task, deaths it has seen
    unread: bytes = field(default=b"")


def run_locally(
    target: str, tasks: Sequence[Mapping[str, Any]], *, workers: int, tick: Tick | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run `target` ("package.module:function") on every task in `workers` processes.

    Args:
        target: function `(task: dict, tick: Tick) -> dict`, both JSON-able.
        tasks: one dict each, paths and numbers only; never bytes of clips.
        workers: number of processes, at least 1.
        tick: told of clips as they finish, for a progress bar.

    Yields:
        (number of the task, its receipt), in the order of finishing.

    Raises:
        StmaeDataError: what a task raised, with its class and exit code, or a task that killed three workers.
    """
    waiting = deque((number, task, 0) for number, task in enumerate(tasks))
    pool: list[_Worker] = []
    selector = selectors.DefaultSelector()

    def start() -> None:
        worker = _start_worker(target)
        pool.append(worker)
        assert worker.process.stdout is not None
        os.set_blocking(worker.process.stdout.fileno(), False)
        selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        give(worker)

    def give(worker: _Worker) -> None:
        assert worker.process.stdin is not None
        worker.task = waiting.popleft() if waiting else None
        with contextlib.suppress(BrokenPipeError):  # a dead worker is met again at its end of file
            if worker.task is None:
                worker.process.stdin.close()
            else:
                worker.process.stdin.write(json.dumps(worker.task[1]).encode() + b"\n")
                worker.process.stdin.flush()

    def bury(worker: _Worker) -> None:
        selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        pool.remove(worker)
        code = worker.process.wait()
        _close(worker)
        if worker.task is None:
            return
        number, task, deaths = worker.task
        if deaths + 1 >= MAX_DEATHS:
            raise StmaeDataError(
                f"Three workers died on the same task ({task.get('name', number)}; last exit {code}); nothing half-written is left, "
                "free some memory or lower --workers, then run the same command again."
            )
        waiting.appendleft((number, task, deaths + 1))
        start()

    try:
        for _ in range(min(max(1, workers), len(tasks))):
            start()
        while pool:
            for key, _ in selector.select():
                worker: _Worker = key.data
                ended, messages = _receive(worker)
                for message in messages:
                    if "clips" in message:
                        if tick is not None:
                            tick(int(message["clips"]))
                    elif "error" in message:
                        raise as_error(message)
                    else:
                        assert worker.task is not None
                        number = worker.task[0]
                        give(worker)
                        yield number, message["receipt"]
                if ended:
                    bury(worker)
    finally:
        selector.close()
        for worker in pool:
            worker.process.kill()
        for worker in pool:
            worker.process.wait()
            _close(worker)


def _start_worker(target: str) -> _Worker:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "stmae_data.engines", target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches the parent, which ends its workers itself
    )
    return _Worker(process)


def _close(worker: _Worker) -> None:
    for stream in (worker.process.stdin, worker.process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _receive(worker: _Worker) -> tuple[bool, list[dict[str, Any]]]:
    assert worker.process.stdout is not None
    data = os.read(worker.process.stdout.fileno(), 1 << 16)
    *lines, worker.unread = (worker.unread + data).split(b"\n")
    return not data, [json.loads(line) for line in lines if line]


def as_error(message: Mapping[str, Any]) -> StmaeDataError:
    """The error a task ended with, as its worker told it: {"error", "kind", "exit_code"}."""
    kind = getattr(errors, str(message["kind"]), StmaeDataError)
    error: StmaeDataError = kind.__new__(kind)
    Exception.__init__(error, str(message["error"]))
    error.exit_code = int(message["exit_code"])
    return error


def work(target: str) -> None:
    """The life of a worker: tasks come as lines, receipts go as lines, until the parent closes."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a stray print must not break the protocol

    def say(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message, allow_nan=False).encode() + b"\n")

    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    for line in sys.stdin.buffer:
        try:
            receipt = function(json.loads(line), lambda clips: say({"clips": clips}))
        except StmaeDataError as error:
            say({"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code})
        except Exception as error:
            traceback.print_exc()
            say({"error": f"internal error in a worker: {type(error).__name__}: {error}", "kind": "", "exit_code": 1})
        else:
            say({"receipt": receipt})
