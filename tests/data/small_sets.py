"""Tiny sealed sets made with the real writers: random bytes as media, any hash frames, ids and hashes a test asks for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stmae_data import files
from stmae_data.fingerprint import commit_fingerprints, fingerprint_clip
from stmae_data.records import PLAN_COLUMNS, kinetics_clip_id, make_row_id, plan_key, set_folder, web_clip_id
from stmae_data.shards import (
    Sample,
    commit_ledger,
    commit_shard,
    fingerprint_path,
    sample_json,
    seal_set,
    shard_info,
    shard_name,
)

SIDE = 64


def pictures(seed: int, *, count: int = 16, start: int = 0, step: int = 2) -> NDArray[np.uint8]:
    """[N, 64, 64]: a window on a long random strip that moves on by `step` columns a frame; frame k of any `start` fits frame start + k."""
    width = 2 * SIDE + 64 * 8
    noise = np.random.default_rng(seed).normal(size=(SIDE, width))
    rows, columns = np.fft.fftfreq(SIDE) * SIDE, np.fft.fftfreq(width) * SIDE
    keep = np.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / 80)
    smooth = np.fft.ifft2(np.fft.fft2(noise) * keep).real
    strip = (126 + 40 * smooth / smooth.std()).clip(16, 235).astype(np.uint8)
    places = [(start + index) * step % (width - SIDE) for index in range(count)]
    return np.stack([strip[:, place : place + SIDE] for place in places])


def clip(
    split: str,
    number: int,
    *,
    look: int | None = None,
    frames: NDArray[np.uint8] | None = None,
    youtube: tuple[str, int, int] | None = None,
    source: str | None = None,
    stream: str | None = None,
    side: int = 240,
    media_bytes: int = 300,
    label: str | None = "running",
    **more: Any,
) -> dict[str, Any]:
    """One written clip. `look` seeds its pictures, `youtube` is (id, start, end) in seconds, `source`/`stream` name its bytes and video."""
    look = look if look is not None else int(hashlib.sha256(f"{split}{number}".encode()).hexdigest()[:6], 16)
    shown = pictures(look) if frames is None else frames
    sha256 = hashlib.sha256((source or f"{split}{number}").encode()).hexdigest()
    span = {"start_ms": None, "end_ms": None, "platform": "file", "platform_id": None}
    clip_id = web_clip_id(sha256)
    if youtube is not None:
        name, start, end = youtube
        clip_id = kinetics_clip_id(name, start * 1000, end * 1000)
        span = {"start_ms": start * 1000, "end_ms": end * 1000, "platform": "youtube", "platform_id": name}
    uri = f"{split}/{number}.mp4"
    media = random.Random(f"{split} {number} {source}").randbytes(media_bytes)
    seconds = len(shown) / 8
    annotation = {"dataset": "tiny", "release": "1", "split": split, "label_raw": label, "label_slug": label}
    return {
        "row_id": make_row_id(split, uri, None, span["start_ms"], span["end_ms"]),
        "split": split,
        "clip_id": clip_id,
        "plan_order": plan_key(0, clip_id),
        "media_kind": "video",
        "source_uri": uri,
        "source_bytes": 2 * media_bytes,
        "source_sha256": sha256,
        "stream_sha256": hashlib.sha256((stream or f"stream {clip_id}").encode()).hexdigest(),
        "annotations": [] if label is None else [annotation],
        "outcome": "written",
        "width_px": side,
        "height_px": side,
        "fps": 30.0,
        "num_frames": round(seconds * 30),
        "duration_seconds": seconds,
        "stored_bytes": media_bytes,
        "stored_sha256": hashlib.sha256(media).hexdigest(),
        "stored_width_px": SIDE,
        "stored_height_px": SIDE,
        "stored_fps": 30.0,
        "stored_num_frames": round(seconds * 30),
        "stored_seconds": seconds,
        "signals": {"motion": number / 10},
        "tags": [],
        **span,
        **more,
        "_media": media,
        "_frames": shown,
    }


def make(workspace: Path, name: str, clips: Sequence[dict[str, Any]], *, shard_size: int = 4) -> Path:
    """Write and seal a set of `clips`; returns its folder."""
    folder = set_folder(workspace, name)
    plan: list[dict[str, Any]] = []
    infos = []
    for split in sorted({each["split"] for each in clips}):
        rows = sorted((dict(each) for each in clips if each["split"] == split), key=lambda row: row["plan_order"])
        for number in range(0, len(rows), shard_size):
            shard, part = shard_name(split, number // shard_size), rows[number : number + shard_size]
            for ordinal, row in enumerate(part):
                row["shard"] = shard
                plan.append({column: row.get(column) for column in PLAN_COLUMNS} | {"ordinal": ordinal})
            _write(folder, shard, part)
            infos.append(shard_info(folder, shard))
    files.commit_table(
        folder / "meta" / "plan.parquet", plan, PLAN_COLUMNS, point="plan", order_by="split, shard, ordinal"
    )
    seal_set(
        folder,
        infos,
        name=name,
        version=1,
        created_from={
            "manifest": "tiny",
            "manifest_sha256": "ab" * 32,
            "plan_sha256": files.sha256_file(folder / "meta" / "plan.parquet"),
        },
        recipe={"encoding": "layered", "layout": "original", "short_side_px": SIDE, "seed": 0},
        counts={"planned": len(clips), "written": len(clips), "dropped": 0, "failed": 0, "reasons": {}},
        parents=[],
        versions={"stmae": "0.1.0"},
    )
    return folder


def _write(folder: Path, shard: str, rows: list[dict[str, Any]]) -> None:
    samples = [Sample(row["clip_id"], _describe(row), row["_media"]) for row in rows]
    placements, _, _ = commit_shard(folder / f"{shard}.tar", samples)
    for row, place in zip(rows, placements, strict=True):
        row.update({name: getattr(place, name) for name in type(place).__dataclass_fields__})
    prints = [
        (row["clip_id"], fingerprint_clip(row["_frames"], np.arange(len(row["_frames"]), dtype=np.int64) * 125))
        for row in rows
    ]
    commit_fingerprints(fingerprint_path(folder, shard), prints)
    commit_ledger(folder, shard, rows)


def _describe(row: dict[str, Any]) -> bytes:
    note = row["annotations"][0] if row["annotations"] else {}
    return sample_json(
        {
            "clip_id": row["clip_id"],
            "dataset": "tiny",
            "release": "1",
            "split": row["split"],
            "label": note.get("label_raw"),
            "start_seconds": None if row["start_ms"] is None else row["start_ms"] / 1000,
            "end_seconds": None if row["end_ms"] is None else row["end_ms"] / 1000,
            "fps": row["stored_fps"],
            "num_frames": row["stored_num_frames"],
            "width_px": row["stored_width_px"],
            "height_px": row["stored_height_px"],
            "layout": "original",
            "source_sha256": row["source_sha256"],
            "license": row.get("license"),
        }
    )


def snapshot(folder: Path) -> dict[str, str]:
    """sha256 of every file of a set but its lock, by path."""
    return {
        str(path.relative_to(folder)): files.sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("LOCK", "LOCK.jobs")
    }
