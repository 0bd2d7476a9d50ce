"""A few threads that wait for servers: work goes in as it is asked for, results come out as they are done."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from stmae_data.fetch.client import Stopped

__all__ = ["run_threads"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_threads(
    work: Callable[[Item], Result], items: Iterable[Item], *, workers: int, stop: threading.Event
) -> Iterator[tuple[Item, Result]]:
    """Do `work` on every item in `workers` threads.

    Yields:
        (item, result) in the order of finishing. Leaving early, or an error, sets `stop` and waits for what is under way.

    Raises:
        Exception: what `work` raised; after `Stopped` nothing more comes.
    """
    waiting = iter(items)
    lock = threading.Lock()
    done: queue.SimpleQueue[tuple[Item, Result] | BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            while not stop.is_set():
                with lock:
                    item = next(waiting, None)
                if item is None:
                    break
                done.put((item, work(item)))
        except Stopped:
            stop.set()
        except BaseException as error:  # handed to the caller, who raises it
            stop.set()
            done.put(error)
        finally:
            done.put(None)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(max(1, workers))]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            found = done.get()
            if found is None:
                running -= 1
            elif isinstance(found, BaseException):
                raise found
            else:
                yield found
    finally:
        if running:
            stop.set()
        for thread in threads:
            thread.join(timeout=8.0)
