"""What a build costs over bare ffmpeg: the same clips through `build`, and through ffmpeg alone with the same picture filters and
encoder, as many at a time. One JSON line; `overhead` is ours over theirs, 1.10 and less is the goal; `processor_overhead` is the same of
processor time, which other work on the machine moves less.

Ours also hashes every source, probes it in a confined child, takes hash frames and times in the same pass, fingerprints, measures,
writes shards and ledgers durably, and seals; ffmpeg alone writes one file a clip.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stmae_data.build import BuildRequest, build
from stmae_data.encode import ffmpeg_executable, ffmpeg_version
from stmae_data.encode.graph import _X264, STORED_FPS
from stmae_data.manifest import load_manifest

CASES = {"640x360, 12 s": (640, 360, 12.0), "64x64, 2 s": (64, 64, 2.0)}
MANIFEST = 'name = "bench"\nrelease = "1"\nkind = "folder"\nshort_side_px = {side}\nclips_per_shard = {per_shard}\n[splits.train]\n'


def make_clips(folder: Path, *, count: int, width: int, height: int, seconds: float) -> list[Path]:
    """Moving test pictures with noise of their own."""
    folder.mkdir(parents=True)
    made = []
    for number in range(count):
        path = folder / f"{number:03d}.mp4"
        source = f"testsrc2=size={width}x{height}:rate=30:duration={seconds},noise=alls=10:allf=t:all_seed={number}"
        options = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-pix_fmt", "yuv420p", "-threads", "1"]
        subprocess.run(
            [ffmpeg_executable(), "-v", "error", "-f", "lavfi", "-i", source, *options, str(path)], check=True
        )
        made.append(path)
    return made


def bare(clips: list[Path], out: Path, *, side: int, workers: int) -> float:
    """Seconds that ffmpeg alone takes, `workers` processes at a time."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    picture = f"fps={STORED_FPS},scale=-2:{side}:flags=bicubic+accurate_rnd+bitexact,format=yuv420p"
    coding = ["-c:v", "libx264", "-preset", "medium", "-crf", "23", "-threads", "1"]
    coding += ["-x264-params", _X264["layered"]["x264-params"], "-movflags", "+faststart", "-an"]

    def one(path: Path) -> None:
        command = [ffmpeg_executable(), "-nostdin", "-v", "error", "-threads", "1", "-i", str(path)]
        subprocess.run(
            [*command, "-filter_threads", "1", "-vf", picture, *coding, str(out / path.name)],
            check=True,
        )

    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, clips))
    return time.perf_counter() - started


def ours(clips: list[Path], workspace: Path, *, side: int, workers: int) -> float:
    """Seconds that a whole build takes, planning and sealing included."""
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.mkdir()
    toml = workspace / "bench.toml"
    per_shard = max(1, len(clips) // (4 * workers))  # enough shards to keep every worker busy to the end
    toml.write_text(MANIFEST.format(side=side, per_shard=per_shard))
    started = time.perf_counter()
    report = build(BuildRequest(workspace, load_manifest(toml), roots=(clips[0].parent,), workers=workers))
    seconds = time.perf_counter() - started
    assert report.counts["written"] == len(clips), report.counts
    return seconds


def processor_seconds() -> float:
    """Processor time of this process and of all its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(folder: Path, name: str, *, count: int, rounds: int, workers: int) -> dict[str, Any]:
    """One case, rounds of both in turn, medians."""
    width, height, seconds = CASES[name]
    side = min(256, height)
    clips = make_clips(folder / "raw", count=count, width=width, height=height, seconds=seconds)
    times: dict[str, list[float]] = {"ours": [], "ffmpeg": []}
    work: dict[str, list[float]] = {"ours": [], "ffmpeg": []}
    for _ in range(rounds):
        for what, run in (("ffmpeg", bare), ("ours", ours)):
            before = processor_seconds()
            times[what].append(run(clips, folder / what, side=side, workers=workers))
            work[what].append(processor_seconds() - before)
    medians = {what: statistics.median(each) for what, each in times.items()}
    processor = {what: statistics.median(each) for what, each in work.items()}
    return {
        "what": "encode",
        "size": name,
        "clips": count,
        "seconds": {what: round(value, 3) for what, value in medians.items()},
        "ms_per_clip": {what: round(1000 * value / count, 1) for what, value in medians.items()},
        "overhead": round(medians["ours"] / medians["ffmpeg"], 3),
        "processor_seconds": {what: round(value, 3) for what, value in processor.items()},
        "processor_overhead": round(processor["ours"] / processor["ffmpeg"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=16, help="clips of 12 s; of the short ones eight times as many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    cells = []
    for number, name in enumerate(CASES):
        with tempfile.TemporaryDirectory() as folder:
            count = options.clips * (8 if number else 1)
            cells.append(measure(Path(folder), name, count=count, rounds=options.rounds, workers=options.workers))
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    versions = {"python": platform.python_version(), "ffmpeg": ffmpeg_version()}
    settings = {"rounds": options.rounds, "workers": options.workers}
    sys.stdout.write(
        json.dumps({"machine": machine, "versions": versions, "settings": settings, "cells": cells}) + "\n"
    )


if __name__ == "__main__":
    main()
