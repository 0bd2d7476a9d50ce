"""What a build costs over bare ffmpeg: the same clips through `build`, and through ffmpeg alone with the same picture filters and
encoder, as many at a time. One JSON line; `overhead` is ours over theirs, 1.10 and less is the goal; `processor_overhead` is the same of
processor time, which other work on the machine moves less. Then what `--encode copy` costs over `tar` and `sha256sum` of the same files,
as many at a time: `ratio` is theirs over ours, 0.7 and more is the goal.

Ours also hashes every source, probes it in a confined child, takes hash frames and times in the same pass, fingerprints, measures,
writes shards and ledgers durably, and seals; ffmpeg alone writes one file a clip. `copy` decodes each clip once, for the same facts, or,
at probe level header, none.
"""

from __future__ import annotations

import argparse
import dataclasses
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
from stmae_data.encode import Encoding, ffmpeg_executable, ffmpeg_version, steady_asm
from stmae_data.encode.graph import _X264, STORED_FPS
from stmae_data.manifest import Manifest, load_manifest

CASES = {"640x360, 12 s": (640, 360, 12.0, 1), "426x240, 4 s": (426, 240, 4.0, 4), "64x64, 2 s": (64, 64, 2.0, 8)}
"""Width, height, seconds, and how many times more clips than of the first: as Kinetics, as Something-Something, and next to nothing."""
COPIED = {26: 8, 20: 1}
"""Quality of the clips that are copied, 1.1 and 12.7 MB each, and eighths of how many."""


def make_clips(folder: Path, *, count: int, width: int, height: int, seconds: float, crf: int = 20) -> list[Path]:
    """Moving test pictures with noise of their own."""
    folder.mkdir(parents=True)
    made = []
    for number in range(count):
        path = folder / f"{number:03d}.mp4"
        source = f"testsrc2=size={width}x{height}:rate=30:duration={seconds},noise=alls=10:allf=t:all_seed={number}"
        options = ["-c:v", "libx264", "-preset", "veryfast", "-crf", str(crf), "-pix_fmt", "yuv420p", "-threads", "1"]
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
    coding += ["-x264-params", _X264["layered"]["x264-params"] + steady_asm(), "-movflags", "+faststart", "-an"]

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


def tar_and_hash(clips: list[Path], out: Path, *, workers: int) -> float:
    """Seconds that `tar`, then `sha256sum`, take over the files, each of `workers` pairs over its share."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()

    def one(number: int) -> None:
        names = [path.name for path in clips[number::workers]]
        for command in (["tar", "-cf", str(out / f"{number}.tar"), *names], ["sha256sum", *names]):
            subprocess.run(command, cwd=clips[0].parent, check=True, stdout=subprocess.DEVNULL)

    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, range(workers)))
    return time.perf_counter() - started


def ours(
    clips: list[Path],
    workspace: Path,
    manifest: Manifest,
    *,
    workers: int,
    encoding: Encoding,
    annotations: tuple[Path, ...] = (),
) -> float:
    """Seconds that a whole build takes, planning and sealing included."""
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.mkdir()
    per_shard = max(1, len(clips) // (4 * workers))  # enough shards to keep every worker busy to the end
    manifest = dataclasses.replace(manifest, clips_per_shard=per_shard)
    request = BuildRequest(
        workspace, manifest, (clips[0].parent,), annotations, name="bench", workers=workers, encoding=encoding
    )
    started = time.perf_counter()
    report = build(request)
    seconds = time.perf_counter() - started
    assert report.counts["written"] == len(clips), report.counts
    return seconds


def processor_seconds() -> float:
    """Processor time of this process and of all its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(folder: Path, name: str, *, count: int, rounds: int, workers: int) -> dict[str, Any]:
    """One case, rounds of both in turn, medians."""
    width, height, seconds, times_more = CASES[name]
    count *= times_more
    side = min(256, height)
    clips = make_clips(folder / "raw", count=count, width=width, height=height, seconds=seconds)
    encoding = Encoding(short_side_px=side)
    runs = {
        "ffmpeg": lambda: bare(clips, folder / "ffmpeg", side=side, workers=workers),
        "ours": lambda: ours(clips, folder / "ours", load_manifest("web"), workers=workers, encoding=encoding),
    }
    times: dict[str, list[float]] = {"ours": [], "ffmpeg": []}
    work: dict[str, list[float]] = {"ours": [], "ffmpeg": []}
    for _ in range(rounds):
        for what, run in runs.items():
            before = processor_seconds()
            times[what].append(run())
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


def measure_copy(folder: Path, *, count: int, crf: int, rounds: int, workers: int) -> dict[str, Any]:
    """`copy` at both probe levels beside tar and sha256sum; clips of 12 s in many copies, each with a box of its own at the end."""
    width, height, seconds, _ = CASES["640x360, 12 s"]
    made = make_clips(folder / "made", count=4, width=width, height=height, seconds=seconds, crf=crf)
    (folder / "raw").mkdir()
    clips = [folder / "raw" / f"clip{number:07d}_000000_000012.mp4" for number in range(count)]
    for number, path in enumerate(clips):
        free = (12).to_bytes(4) + b"free" + number.to_bytes(4)
        path.write_bytes(made[number % len(made)].read_bytes() + free)
    table = folder / "train.csv"
    lines = [f"running,{path.stem[:11]},0,12,train" for path in clips]
    table.write_text("\n".join(["label,youtube_id,time_start,time_end,split", *lines]) + "\n")
    few = clips[: max(workers, count // 16)]  # decoding takes long: a share of the files tells its time
    (folder / "few").mkdir()
    few = [Path(shutil.copy(path, folder / "few")) for path in few]
    times: dict[str, list[float]] = {"tar and sha256sum": [], "copy, header": [], "copy, full": []}
    for _ in range(rounds):
        times["tar and sha256sum"].append(tar_and_hash(clips, folder / "theirs", workers=workers) / count)
        for level, some in (("header", clips), ("full", few)):
            encoding = Encoding("copy", height, level)
            seconds = ours(
                some, folder / "ours", load_manifest("k400"), workers=workers, encoding=encoding, annotations=(table,)
            )
            times[f"copy, {level}"].append(seconds / len(some))
    medians = {what: statistics.median(each) for what, each in times.items()}
    return {
        "what": "copy",
        "clips": count,
        "megabytes": round(sum(path.stat().st_size for path in clips) / 1e6, 1),
        "ms_per_clip": {what: round(1000 * value, 2) for what, value in medians.items()},
        "ratio": {
            what: round(medians["tar and sha256sum"] / medians[what], 3) for what in ("copy, header", "copy, full")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=16, help="clips of 12 s; of the shorter ones more")
    parser.add_argument(
        "--copies", type=int, default=1536, help="clips of 1.1 MB that are copied; of the large ones an eighth"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    cells = []
    settings = {"rounds": options.rounds, "workers": options.workers}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            cells.append(measure(Path(folder), name, count=options.clips, **settings))
    for crf, count in COPIED.items():
        with tempfile.TemporaryDirectory() as folder:
            cells.append(measure_copy(Path(folder), count=max(16, options.copies * count // 8), crf=crf, **settings))
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    versions = {"python": platform.python_version(), "ffmpeg": ffmpeg_version()}
    sys.stdout.write(
        json.dumps({"machine": machine, "versions": versions, "settings": settings, "cells": cells}) + "\n"
    )


if __name__ == "__main__":
    main()
