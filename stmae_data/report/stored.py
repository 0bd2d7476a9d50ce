"""Frames out of stored clips, for pages on which a person judges."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stmae_data import files, frames
from stmae_data.errors import SetError
from stmae_data.records import is_valid_key, set_folder
from stmae_data.shards import open_set, read_range

__all__ = ["StoredClip", "find_stored", "picture_at"]

_WIDTH_PX = 160


@dataclass(frozen=True, slots=True)
class StoredClip:
    """Where a clip's bytes lie."""

    tar: Path
    offset: int
    size: int
    fps: float
    seconds: float


def picture_at(stored: StoredClip | None, at: float) -> str:
    """One frame as the text of a data URL, `at` seconds into the clip; empty when it cannot be read."""
    if stored is None:
        return ""
    try:
        descriptor = os.open(stored.tar, os.O_RDONLY | os.O_CLOEXEC)
        try:
            media = read_range(descriptor, stored.offset, stored.size, name=stored.tar.name)
        finally:
            os.close(descriptor)
        return base64.b64encode(frames.thumbnail(media, width_px=_WIDTH_PX, frame=round(at * stored.fps))).decode()
    except (SetError, OSError):
        return ""  # the page says "cannot be read" in its place; verify tells why


def find_stored(workspace: Path, clips: Iterable[tuple[str, str]]) -> dict[tuple[str, str], StoredClip]:
    """Where clips lie, by (set, clip id); one that is not stored is absent.

    Raises:
        SetError: a set is missing or damaged.
    """
    wanted: dict[str, set[str]] = {}
    for name, clip_id in clips:
        wanted.setdefault(name, set()).add(clip_id)
    found = {}
    for name, clip_ids in wanted.items():
        folder = set_folder(workspace, name)
        rows = files.read_table(
            open_set(workspace, name, books_only=True).ledgers(),
            """SELECT clip_id, shard, media_offset, media_bytes, stored_fps, stored_seconds FROM book
               WHERE outcome = 'written' AND clip_id IN (SELECT unnest(?::VARCHAR[]))""",
            [sorted(clip_ids)],
        )
        for row in rows:
            if is_valid_key(row["shard"] or ""):  # it comes out of a book: only a shard's own name may become a path
                found[name, row["clip_id"]] = StoredClip(
                    folder / f"{row['shard']}.tar",
                    row["media_offset"],
                    row["media_bytes"],
                    row["stored_fps"] or 30.0,
                    row["stored_seconds"] or 0.0,
                )
    return found
