"""Who does the work: local processes, or Ray. The same tasks give the same bytes whichever ran them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stmae_data.engines.local import Tick, run_locally
from stmae_data.errors import UsageError

__all__ = ["ENGINES", "Tick", "check_engine", "run_tasks"]

ENGINES = ("local", "ray")


def check_engine(engine: str) -> None:
    """Refuse an engine that cannot run here, before work starts.

    Raises:
        UsageError: there is no such engine; StmaeDataError: its package is not installed.
    """
    if engine not in ENGINES:
        raise UsageError(f"There is no engine {engine!r}; there are {', '.join(ENGINES)}.")
    if engine == "ray":
        from stmae_data.engines.on_ray import load_ray

        load_ray()


def run_tasks(
    target: str, tasks: Sequence[Mapping[str, Any]], *, workers: int, tick: Tick | None = None, engine: str = "local"
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run `target` ("package.module:function") on every task.

    Args:
        target: function `(task: dict, tick: Tick) -> dict`, both JSON-able.
        tasks: one dict each, paths and numbers only; never bytes of clips.
        workers: number of processes, at least 1; on a Ray cluster that stands already, the cluster decides.
        tick: told of clips as they finish, for a progress bar.
        engine: one of ENGINES.

    Yields:
        (number of the task, its receipt), in the order of finishing.

    Raises:
        StmaeDataError: what a task raised, with its class and exit code, or a task that killed three workers.
    """
    check_engine(engine)
    if engine == "ray":
        from stmae_data.engines.on_ray import run_on_ray

        yield from run_on_ray(target, tasks, workers=workers, tick=tick)
    else:
        yield from run_locally(target, tasks, workers=workers, tick=tick)
