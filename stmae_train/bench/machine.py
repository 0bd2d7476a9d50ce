"""What every benchmark says about where it ran: a ratio of interleaved rounds travels, a bare time does not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["geometric_mean", "interleaved", "machine", "versions"]


def machine(*, threads: int, device: str = "cpu") -> dict[str, Any]:
    """System, processor, cores, and how busy they were."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": [round(each, 2) for each in os.getloadavg()],
        "threads": threads,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
    }


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions(*names: str) -> dict[str, str | None]:
    """Versions of ours, Python and some packages; None where one is not installed."""
    from stmae_train import __version__

    found: dict[str, str | None] = {"stmae": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def interleaved(
    variants: Mapping[str, Callable[[int], float]], *, rounds: int, warmup_rounds: int = 1
) -> dict[str, list[float]]:
    """Seconds that every variant says it took, by round. All run in turn within a round, so what else the machine does meets them alike.

    Args:
        variants: each is given the number of the round, from 0; rounds that warm up come with the number of the first.
        rounds: that count.
        warmup_rounds: that do not.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-warmup_rounds, rounds):
        for name, run in variants.items():
            seconds = run(max(number, 0))
            if number >= 0:
                times[name].append(seconds)
    return times


def geometric_mean(values: Sequence[float]) -> float:
    """Over videos: no single one rules it."""
    return float(statistics.geometric_mean(values))
