"""Ray Core tasks: arguments are paths and numbers, receipts are small, bytes of clips go straight to storage, never through Ray.

Every task runs in a small process of its own, as on one machine: a Ray worker has threads, and a process with threads must not fork.
The workspace and the sources have to be reachable under the same paths on every node.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stmae_data.engines.local import MAX_DEATHS, Tick, as_error, run_locally
from stmae_data.errors import StmaeDataError

__all__ = ["load_ray", "run_on_ray"]

_STORE_BYTES = 100 << 20


def load_ray() -> Any:
    """The package `ray`.

    Raises:
        StmaeDataError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise StmaeDataError(
            "The engine ray needs the package ray, which is not installed here; pip install 'stmae[ray]', or leave --engine out."
        ) from error
    return ray


def run_on_ray(
    target: str, tasks: Sequence[Mapping[str, Any]], *, workers: int, tick: Tick | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `run_tasks`. The cluster is the one RAY_ADDRESS names, else `workers` processors of this machine.

    Raises:
        StmaeDataError: what a task raised, or what Ray could not do.
    """
    ray = load_ray()
    is_ours = not ray.is_initialized()
    try:
        if is_ours:
            _start(ray, workers)
        remote = ray.remote(num_cpus=1, max_retries=MAX_DEATHS - 1)(_run_one)
        waiting = {remote.remote(target, dict(task)): number for number, task in enumerate(tasks)}
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(ready)
            message = ray.get(ready)
            if "error" in message:
                raise as_error(message)
            if tick is not None:
                tick(int(message["clips"]))
            yield number, message["receipt"]
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise StmaeDataError(
            f"Ray gave up on a task ({type(error).__name__}: {str(error).splitlines()[0]:.160}); nothing half-written counts, "
            "look after the cluster, then run the same command again."
        ) from error
    finally:
        if is_ours:
            ray.shutdown()  # with it go the tasks that still run


def _start(ray: Any, workers: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": "error"}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init(
            address="local",
            num_cpus=max(1, workers),
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            **quiet,
        )


def _run_one(target: str, task: dict[str, Any]) -> dict[str, Any]:
    """On a node: one task in a process of its own; an error comes back as a message, as from a local worker."""
    clips = 0

    def count(finished: int) -> None:
        nonlocal clips
        clips += finished

    try:
        ((_, receipt),) = run_locally(target, [task], workers=1, tick=count)
    except StmaeDataError as error:
        return {"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code}
    return {"receipt": receipt, "clips": clips}
