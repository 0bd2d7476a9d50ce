"""Milliseconds per clip (16 frames, stride 4) of reading stored clips; prints one JSON line.

Ours reads the layered file, peers read a plain x264 file of the same size. Variants run in turn in one process on one thread; a figure is
the geometric mean over the videos of the median over the rounds. Run it: `python tests/bench/bench_decode.py [--rounds N] [VIDEO…]`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from stmae_data.encode import encode_clip, ffmpeg_executable, ffmpeg_version
from stmae_data.frames import count_frames, read_clips
from stmae_data.media import open_source, open_video, probe

REAL = Path(__file__).resolve().parents[3] / "shared" / "real" / "neardup"
NAMES = ("carphone_pristine", "dj_video1", "dj_video4", "nasa_13013", "pool_full", "testcard_long")
SPAN = 61


def stored_pair(source: Path, folder: Path) -> tuple[bytes, Path]:
    """The layered clip, and a plain x264 file of the same picture size."""
    with open_source(source) as descriptor:
        clip = encode_clip(descriptor, probe(descriptor))
    plain = folder / f"{source.stem}.mp4"
    size = f"{clip.stored.stored_width_px}:{clip.stored.stored_height_px}"
    subprocess.run(
        [
            *(ffmpeg_executable(), "-v", "error", "-y", "-i", str(source), "-an", "-vf", f"fps=30,scale={size}"),
            *("-c:v", "libx264", "-preset", "medium", "-crf", "23", "-pix_fmt", "yuv420p", str(plain)),
        ],
        check=True,
    )
    return clip.media, plain


def clips_of(num_frames: int, count: int, *, alignment: int, seed: int) -> list[range]:
    draw = np.random.default_rng(seed)
    last = max(0, num_frames - SPAN) // alignment
    starts = [alignment * int(draw.integers(0, last + 1)) for _ in range(count)]
    return [range(start, min(start + SPAN, num_frames), 4) for start in starts]


def pyav_all(plain: bytes, clips: Sequence[range]) -> None:
    """Decode from the start to the last wanted frame, colour the wanted ones."""
    wanted = {index for clip in clips for index in clip}
    with open_video(plain) as container:
        for index, frame in enumerate(container.decode(container.streams.video[0])):
            if index in wanted:
                frame.to_ndarray(format="rgb24")
            if index == max(wanted):
                return


def torchcodec_rgb(plain: bytes, clips: Sequence[range]) -> None:
    decoder = importlib.import_module("torchcodec.decoders").VideoDecoder(plain, num_ffmpeg_threads=1)
    decoder.get_frames_at(sorted({index for clip in clips for index in clip}))


def decord_rgb(plain: bytes, clips: Sequence[range]) -> None:
    import io

    reader = importlib.import_module("decord").VideoReader(io.BytesIO(plain), num_threads=1)
    reader.get_batch(sorted({index for clip in clips for index in clip}))


PEERS: dict[str, tuple[str, Callable[[bytes, Sequence[range]], None]]] = {
    "pyav": ("av", pyav_all),
    "torchcodec": ("torchcodec", torchcodec_rgb),
    "decord": ("decord", decord_rgb),
}


def is_installed(module: str) -> bool:
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError):  # torchcodec raises RuntimeError where its ffmpeg is missing
        return False
    return True


def measure(pairs: Sequence[tuple[bytes, bytes]], *, clips_per_video: int, rounds: int) -> dict[str, Any]:
    present = {name: call for name, (module, call) in PEERS.items() if is_installed(module)}
    medians: dict[str, list[float]] = {}
    for layered, plain in pairs:
        frames = min(count_frames(layered), count_frames(plain))
        times: dict[str, list[float]] = {}
        for number in range(rounds):
            aligned = clips_of(frames, clips_per_video, alignment=4, seed=number)
            anywhere = clips_of(frames, clips_per_video, alignment=1, seed=number)
            variants: dict[str, Callable[[], object]] = {
                "ours_planes": lambda: read_clips(layered, aligned, layout="layered-4"),  # noqa: B023 - called at once
                "ours_rgb": lambda: read_clips(layered, aligned, layout="layered-4").to_rgb(),  # noqa: B023
                "ours_planes_any_start": lambda: read_clips(layered, anywhere, layout="layered-4"),  # noqa: B023
                "ours_planes_plain_file": lambda: read_clips(plain, anywhere, layout="original"),  # noqa: B023
            }
            for name, call in present.items():
                variants[name] = lambda call=call: call(plain, anywhere)  # type: ignore[misc]  # noqa: B023
            for name, variant in variants.items():
                begun = time.perf_counter()
                variant()
                times.setdefault(name, []).append((time.perf_counter() - begun) * 1000 / clips_per_video)
        for name, each in times.items():
            medians.setdefault(name, []).append(statistics.median(each))
    figures: dict[str, Any] = {name: round(statistics.geometric_mean(each), 2) for name, each in medians.items()}
    return figures | {name: "absent" for name in PEERS if name not in present}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    videos = options.videos or [REAL / f"{name}.mp4" for name in NAMES if (REAL / f"{name}.mp4").is_file()]
    if not videos:
        sys.exit("No videos: name some, or put the real ones beside the checkout.")
    with tempfile.TemporaryDirectory() as folder:
        stored = [stored_pair(video, Path(folder)) for video in videos]
        pairs = [(layered, plain.read_bytes()) for layered, plain in stored]
    cells = []
    for count in (1, 4):
        figures = measure(pairs, clips_per_video=count, rounds=options.rounds)
        peers = {name: figures[name] for name in PEERS}
        best = min(value for value in peers.values() if value != "absent")
        cells.append(
            {
                "what": "decode",
                "clips_per_video": count,
                "ms_per_clip": {name: value for name, value in figures.items() if name not in PEERS},
                "peers": peers,
                "ratio_to_best_peer": round(best / figures["ours_rgb"], 2),
            }
        )
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    versions = {"python": platform.python_version(), "pyav": av.__version__, "ffmpeg": ffmpeg_version()}
    settings = {"rounds": options.rounds, "videos": [video.name for video in videos], "threads": 1}
    sys.stdout.write(
        json.dumps({"machine": machine, "versions": versions, "settings": settings, "cells": cells}) + "\n"
    )


if __name__ == "__main__":
    main()
