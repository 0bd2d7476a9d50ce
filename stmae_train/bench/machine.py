"""What every benchmark says about where it ran: a ratio of interleaved rounds travels, a bare time does not."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["PeakMemory", "geometric_mean", "interleaved", "machine", "peak_memory", "versions"]


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


@dataclass(slots=True)
class PeakMemory:
    """Most bytes that stood at once above those at the start of the block; None before its end, and where the system does not tell."""

    num_bytes: int | None = None


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure a block: tensors on the card with CUDA, else resident memory of this process (Linux resets its own high-water mark)."""
    peak = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.num_bytes = torch.cuda.max_memory_allocated(device) - before
        return
    resident = _resident_bytes("VmRSS") if _reset_high_water_mark() else None
    yield peak
    after = _resident_bytes("VmHWM")
    peak.num_bytes = after - resident if resident is not None and after is not None else None


def _reset_high_water_mark() -> bool:
    """Give free heap back to the system, then forget how much was resident (`5` in clear_refs, proc(5)); False where that is refused."""
    with contextlib.suppress(AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident_bytes(name: str) -> int | None:
    facts = Path("/proc/self/status")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
