"""How a build grows: 100 and 1,000 tiny clips (and more with --sizes), each size in a process of its own. One JSON line.

`exponent` is the slope of log time over log clips between neighbouring sizes: 1 is linear. `growth_mb` is how much more memory the
parent held at its peak than at the smallest size; `open_files` the most it had open at once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from stmae_data.build import BuildRequest, build
from stmae_data.encode import ffmpeg_executable, ffmpeg_version
from stmae_data.manifest import load_manifest

MANIFEST = 'name = "growth"\nrelease = "1"\nkind = "folder"\nshort_side_px = 64\nclips_per_shard = 50\n[splits.train]\n'


def clip(folder: Path) -> bytes:
    """A real video of 20 frames at 64 px."""
    path = folder / "clip.mp4"
    source = "testsrc2=size=64x64:rate=30:duration=0.7"
    options = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-threads", "1"]
    subprocess.run(
        [ffmpeg_executable(), "-v", "error", "-f", "lavfi", "-i", source, *options, "-frames:v", "20", str(path)],
        check=True,
    )
    return path.read_bytes()


def one_of_its_own(media: bytes, number: int) -> bytes:
    """The same video in other bytes: an empty box at the end carries the number."""
    return media + (16).to_bytes(4) + b"free" + number.to_bytes(8)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def measure(size: int, workers: int) -> dict[str, Any]:
    """Build `size` clips in this process and watch it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        media = clip(folder)
        (folder / "raw").mkdir()
        for number in range(size):
            (folder / "raw" / f"{number:06d}.mp4").write_bytes(one_of_its_own(media, number))
        (folder / "growth.toml").write_text(MANIFEST)
        peak, open_files, stages = 0.0, 0, {}

        def watch(stage: str, done: int, total: int) -> None:
            nonlocal peak, open_files
            stages.setdefault(stage, time.perf_counter())
            if done % 10 == 0 or done == total:
                peak = max(peak, resident_mb())
                open_files = max(open_files, len(list(Path("/proc/self/fd").iterdir())))

        request = BuildRequest(folder, load_manifest(folder / "growth.toml"), roots=(folder / "raw",), workers=workers)
        started = time.perf_counter()
        report = build(request, progress=watch)
        ended = time.perf_counter()
        assert report.counts["written"] == size, report.counts
        return {
            "clips": size,
            "seconds": round(ended - started, 2),
            "plan_seconds": round(stages["encode"] - started, 2),
            "clips_per_second": round(size / (ended - started), 1),
            "peak_mb": round(max(peak, resident_mb()), 1),
            "open_files": open_files,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000], help="numbers of clips, rising")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(measure(options.one, options.workers)) + "\n")
        return
    cells = []
    for size in options.sizes:
        command = [sys.executable, __file__, "--one", str(size), "--workers", str(options.workers)]
        cells.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    for smaller, larger in pairwise(cells):
        ratio = larger["seconds"] / smaller["seconds"]
        larger["exponent"] = round(math.log(ratio) / math.log(larger["clips"] / smaller["clips"]), 3)
        larger["growth_mb"] = round(larger["peak_mb"] - cells[0]["peak_mb"], 1)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    versions = {"python": platform.python_version(), "ffmpeg": ffmpeg_version()}
    cells = [{"what": "growth", **cell} for cell in cells]
    settings = {"workers": options.workers, "clips_per_shard": 50, "frames": 20, "side_px": 64}
    sys.stdout.write(
        json.dumps({"machine": machine, "versions": versions, "settings": settings, "cells": cells}) + "\n"
    )


if __name__ == "__main__":
    main()
