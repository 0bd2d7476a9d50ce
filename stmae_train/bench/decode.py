"""Milliseconds per clip of reading stored clips, ours against the readers people use; that ours are the right pictures; what pixels cost.

PERFORMANCE.md, "What the benchmarks must show", defines the cells. Peers read a plain x264 file of the same picture size ("same file":
ours); they draw any start, ours multiples of 4, from the same seeds; all end in the same uint8 crops unless said.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stmae_data import limits
from stmae_data.encode import Encoding, encode_clip, ffmpeg_executable, ffmpeg_version
from stmae_data.frames import measure
from stmae_data.limits import Limits
from stmae_data.media import open_source, probe
from stmae_train.bench.checks import exactness_cell, pixels_cell
from stmae_train.bench.machine import geometric_mean, interleaved, machine, versions
from stmae_train.bench.readers import PEERS, Stored, aligned_frames_only, ours_rgb, ours_yuv, present_peers
from stmae_train.errors import ModelError
from stmae_train.views import Boxes, random_boxes, uniforms

__all__ = ["DecodeBench", "bench_decode"]

SPAN, STRIDE, CROP_PX = 61, 4, 224  # frames that a clip of 16 spans, and the side of its crops
_START_STREAM = 40
Pair = tuple[Stored, Stored]


@dataclass(frozen=True, slots=True)
class DecodeBench:
    """What to time.

    Attributes:
        videos: source files; each is stored layered and plain first.
        rounds: timed rounds after one that is not counted.
        clips_per_video: K, one cell each.
        short_side_px: of the stored clips.
        encoding: layered, lean or fast.
        checks: also compare every frame with a full decode, and device pixels with a float64 reference.
    """

    videos: tuple[Path, ...]
    rounds: int = 7
    clips_per_video: tuple[int, ...] = (1, 4)
    short_side_px: int = 256
    encoding: str = "layered"
    checks: bool = True

    def __post_init__(self) -> None:
        if not self.videos or self.rounds < 1 or min(self.clips_per_video, default=0) < 1:
            raise ModelError(
                f"{len(self.videos)} videos, {self.rounds} rounds and K of {list(self.clips_per_video)} cannot be timed; name videos to read "
                f"and ask for at least one of each."
            )


def bench_decode(
    wanted: DecodeBench, folder: Path, *, watch: Callable[[str, int, int], None] | None = None
) -> dict[str, Any]:
    """Time every cell; milliseconds per clip of 16 frames.

    Args:
        wanted: what to time.
        folder: for the stored clips.
        watch: told (stage, done, total).

    Raises:
        ModelError: a video is too short or cannot be stored.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs: list[Pair] = []
        for number, video in enumerate(wanted.videos):
            pairs.append(_stored_pair(video, folder / str(number), wanted))
            _tell(watch, "storing", len(pairs), len(wanted.videos))
        peers, absent = present_peers()
        cells: list[dict[str, Any]] = []
        for number, count in enumerate(wanted.clips_per_video):
            cells += _cells(pairs, peers, wanted, count)
            _tell(watch, "timing", number + 1, len(wanted.clips_per_video))
        if wanted.checks:
            stored = [ours for ours, _ in pairs]
            cells += [exactness_cell(stored[0]), pixels_cell(stored, crop_px=CROP_PX)]
    finally:
        torch.set_num_threads(before)
    for cell in cells:
        cell.setdefault("absent", sorted(absent) if cell["peers"] else [])
    return {
        "machine": machine(threads=1),
        "versions": {
            **versions("torch", "av", "torchcodec", "opencv-python-headless", "decord"),
            "ffmpeg": ffmpeg_version(),
        },
        "settings": {
            "rounds": wanted.rounds,
            "videos": [each.name for each in wanted.videos],
            "encoding": wanted.encoding,
            "short_side_px": wanted.short_side_px,
            "clip": f"{SPAN // STRIDE + 1} frames, stride {STRIDE}, uint8 crops of {CROP_PX} px, area 0.5 to 1",
            "figure": "ms per clip; geometric mean over the videos of the median over interleaved rounds, one thread each",
            "ratio": "geometric mean over the videos of median(best peer) / median(ours); above 1 ours is faster",
            "absent": absent,
        },
        "cells": cells,
    }


def _tell(watch: Callable[[str, int, int], None] | None, stage: str, done: int, total: int) -> None:
    if watch is not None:
        watch(stage, done, total)


def _stored_pair(video: Path, folder: Path, wanted: DecodeBench) -> Pair:
    """The layered clip, and a plain x264 file of the same picture size (medium, crf 23)."""
    folder.mkdir(parents=True)
    with open_source(video) as descriptor:
        clip = encode_clip(
            descriptor, probe(descriptor), encoding=Encoding(wanted.encoding, short_side_px=wanted.short_side_px)
        )
    ours, plain = folder / "ours.mp4", folder / "plain.mp4"
    ours.write_bytes(clip.media)
    width, height = clip.stored.stored_width_px, clip.stored.stored_height_px
    command = [ffmpeg_executable(), "-v", "error", "-y", "-i", os.fspath(video.resolve()), "-an", "-threads", "1"]
    command += ["-vf", f"fps=30,scale={width}:{height},setsar=1", "-c:v", "libx264", "-preset", "medium", "-crf", "23"]
    finished = limits.run([*command, "-pix_fmt", "yuv420p", str(plain)], limits=Limits(cpu_seconds=300.0))
    if finished.kind != "ok":
        raise ModelError(f"{video} cannot be stored as a plain file ({finished.errors[-200:].strip()}); leave it out.")
    lengths = [measure(path.read_bytes())[0] for path in (ours, plain)]
    if min(lengths) < SPAN:
        raise ModelError(f"{video} has {min(lengths)} frames at 30 a second, wanted {SPAN} or more; name a longer one.")
    return tuple(  # type: ignore[return-value]
        Stored(path.read_bytes(), path, min(lengths), height, width) for path in (ours, plain)
    )


def _drawn(stored: Stored, count: int, *, alignment: int, seed: int) -> tuple[list[range], Boxes]:
    """Frames of K clips and their crops; the same draw for every alignment."""
    draws = uniforms(seed, range(count), count=1, stream=_START_STREAM)[:, 0]
    places = (stored.num_frames - SPAN) // alignment + 1
    starts = [alignment * int(draw * places) for draw in draws]
    sizes = {"heights": np.full(count, stored.height), "widths": np.full(count, stored.width)}
    boxes = random_boxes(seed, range(count), **sizes, area=(0.5, 1.0), aspect=(3 / 4, 4 / 3), flip=False)
    return [range(start, start + SPAN, STRIDE) for start in starts], boxes


def _cells(pairs: Sequence[Pair], peers: dict[str, Any], wanted: DecodeBench, count: int) -> list[dict[str, Any]]:
    """rgb, yuv, same file and floor at K = count."""
    medians: dict[str, list[float]] = {}
    for ours, plain in pairs:
        for name, times in interleaved(_variants(ours, plain, peers, count), rounds=wanted.rounds).items():
            medians.setdefault(name, []).append(1000 * statistics.median(times) / count)
    figures = {name: geometric_mean(each) for name, each in medians.items()}

    def cell(what: str, ours: str, against: dict[str, str | None], **facts: Any) -> dict[str, Any]:
        values = {name: None if key is None else round(figures[key], 3) for name, key in against.items()}
        best = min((key for key in against.values() if key), key=lambda key: figures[key], default=None)
        ratios = (
            [] if best is None else [theirs / mine for theirs, mine in zip(medians[best], medians[ours], strict=True)]
        )
        return {
            "what": what,
            "size": f"K = {count}",
            "dtype": "uint8",
            "unit": "ms per clip",
            "ours": round(figures[ours], 3),
            "peers": values,
            "ratio_to_best_peer": round(geometric_mean(ratios), 4) if ratios else None,
            **facts,
        }

    on_plain, on_ours = (
        {name: f"{name} {file}" if name in peers else None for name in PEERS} for file in ("plain", "ours")
    )
    return [
        cell("decode rgb: crops, peers on a plain file", "rgb", on_plain, gate={1: 3.2, 4: 2.2}.get(count)),
        cell(
            "decode yuv: cropped planes for the device, against the peers' RGB crops",
            "yuv",
            on_plain,
            gate={1: 4.5, 4: 3.2}.get(count),
        ),
        cell("decode same file: crops, peers on our file", "rgb", on_ours, gate=1.6),
        cell(
            "decode floor: libavcodec without output / cropped planes",
            "yuv",
            {"libavcodec, no output": "floor"},
            gate=0.85 if count == 4 else None,
            absent=[],
        ),
    ]


def _variants(ours: Stored, plain: Stored, peers: dict[str, Any], count: int) -> dict[str, Callable[[int], float]]:
    def timed(read: Callable[..., Any], stored: Stored, alignment: int, number: int) -> float:
        clips, boxes = _drawn(stored, count, alignment=alignment, seed=number)
        started = time.perf_counter()
        read(stored, clips, boxes)
        return time.perf_counter() - started

    variants: dict[str, Callable[[int], float]] = {
        "rgb": partial(timed, partial(ours_rgb, size=CROP_PX, layout="layered-4"), ours, STRIDE),
        "yuv": partial(timed, partial(ours_yuv, layout="layered-4"), ours, STRIDE),
        "floor": partial(timed, lambda stored, clips, _: aligned_frames_only(stored, clips), ours, STRIDE),
    }
    for name, read in peers.items():
        for file, stored in (("plain", plain), ("ours", ours)):
            sized = partial(_sized, read)
            variants[f"{name} {file}"] = partial(timed, sized, stored, 1)
    return variants


def _sized(read: Callable[..., Any], stored: Stored, clips: Sequence[range], boxes: Boxes) -> Any:
    return read(stored, clips, boxes, CROP_PX)
