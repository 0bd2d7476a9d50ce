"""`--deep`: the fast reader of stored clips against a decode of every frame, on a few clips of every split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stmae_data import files
from stmae_data.errors import SetError
from stmae_data.shards import ledger_path
from stmae_data.verify.damage import DamageCode, Findings
from stmae_data.verify.whole import Seal

__all__ = ["check_decoding"]

_CLIPS_PER_SPLIT = 8
_MAX_FRAMES = 512
_STRIDE = 4
_GROUP = 64
"""Frames between key frames of a layered file: a clip that starts inside a group makes the reader seek."""


def check_decoding(folder: Path, seal: Seal, findings: Findings) -> None:
    """Decode a fixed sample of clips both ways; any other pixel, or a frame that does not arrive, is damage."""
    layout = str(dict(seal.document.get("recipe") or {}).get("layout", "original"))
    for row in _sample(folder, seal):
        shard = f"{row['shard']}.tar"
        try:
            with (folder / shard).open("rb") as stream:
                stream.seek(row["media_offset"])
                media = stream.read(row["media_bytes"])
            problem = _compare(media, row["stored_num_frames"], layout)
        except (SetError, OSError) as error:
            problem = str(error)
        if problem:
            findings.add(DamageCode.DECODER_DISAGREES, shard, f"{row['clip_id']}: {problem}")


def _sample(folder: Path, seal: Seal) -> list[dict[str, Any]]:
    """The written videos with the smallest hash of their id, some of every split: the same ones every time."""
    splits: dict[str, list[Path]] = {}
    for line in seal.lines:
        splits.setdefault(line["split"], []).append(ledger_path(folder, line["name"]))
    chosen = []
    for paths in splits.values():
        rows = files.read_table(
            paths,
            """SELECT clip_id, shard, media_offset, media_bytes, stored_num_frames FROM book
               WHERE outcome = 'written' AND media_kind = 'video'""",
        )
        rows.sort(key=lambda row: hashlib.sha256(str(row["clip_id"]).encode()).digest())
        chosen += rows[:_CLIPS_PER_SPLIT]
    return chosen


def _compare(media: bytes, num_frames: int, layout: str) -> str | None:
    """What is wrong with one clip, or None."""
    from stmae_data import frames

    found = frames.count_frames(media)
    if found != num_frames:
        return f"holds {found} frames, its ledger row says {num_frames}"
    count = min(num_frames, _MAX_FRAMES)
    # All frames are wanted, so nothing can be skipped: this is the whole decode.
    whole = frames.read_clips(media, [range(count)], layout="original")
    for start in (0, _GROUP + _STRIDE):
        wanted = range(start, count, _STRIDE)
        if not wanted:
            continue
        fast = frames.read_clips(media, [wanted], layout=layout)
        for index in wanted:
            if not _is_equal(fast, whole, index):
                return f"frame {index} read the fast way differs from the whole decode"
    return None


def _is_equal(fast: Any, whole: Any, index: int) -> bool:
    ours: Mapping[int, int] = fast.position
    theirs: Mapping[int, int] = whole.position
    return all(
        np.array_equal(getattr(fast, plane)[ours[index]], getattr(whole, plane)[theirs[index]])
        for plane in ("y", "u", "v")
    )
