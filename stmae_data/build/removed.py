"""What left a set stays away: clips of `meta/removed.parquet` are planned as dropped, whatever row they come back under, and so is
whatever the workspace's book of takedowns names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.errors import Reason
from stmae_data.remove.book import Takedowns, read_takedowns

__all__ = ["Tombstones", "read_tombstones"]

_Piece = tuple[str, int | None, int | None]


@dataclass(frozen=True, slots=True)
class Tombstones:
    """Clips that were taken out, by row, by clip id and by source bytes, each with the reason it went for; and the takedowns of the workspace.

    Of a source that is cut into clips, its bytes name a clip only together with the interval. The bytes of a duplicate stay in the set
    under the clip it repeats, so duplicates are known by row and clip id alone.
    """

    row_ids: dict[str, str]
    clip_ids: dict[str, str]
    pieces: dict[_Piece, str]
    takedowns: Takedowns

    def problem_of_id(
        self, row_id: str, clip_id: str | None, told: Mapping[str, Any] | None = None
    ) -> tuple[Reason, str] | None:
        """Why a row is dropped without a look at it, by what it is called (`told`: columns of the plan); None for one that may come in."""
        reason = self.row_ids.get(row_id) or (self.clip_ids.get(clip_id) if clip_id is not None else None)
        if reason is not None:
            return _problem(reason)
        return _barred(self.takedowns.reason_of_row(clip_id, told or {}))

    def problem_of_bytes(
        self, source_sha256: str | None, *, is_cut: bool, start_ms: int | None, end_ms: int | None
    ) -> tuple[Reason, str] | None:
        """Why source bytes are dropped, or the piece of them that is to be cut out; None where they may stay."""
        if source_sha256 is None:
            return None
        whole: list[_Piece] = [(source_sha256, None, None)]
        named = [*whole, (source_sha256, start_ms, end_ms)] if is_cut else whole
        reason = next((self.pieces[piece] for piece in named if piece in self.pieces), None)
        if reason is not None:
            return _problem(reason)
        pieces = self.takedowns.pieces
        return _barred(next((pieces[piece] for piece in named if piece in pieces), None))

    def problem_of_clip(self, stream_sha256: str | None, stored_sha256: str) -> tuple[Reason, str] | None:
        """Why a clip is dropped whose video or stored bytes were taken down; None where it may stay."""
        pieces = self.takedowns.pieces
        hashes = (each for each in (stream_sha256, stored_sha256) if each is not None)
        return _barred(next((pieces[each, None, None] for each in hashes if (each, None, None) in pieces), None))


def _barred(reason: str | None) -> tuple[Reason, str] | None:
    return None if reason is None else (Reason.REMOVED, f"it was taken down in this workspace ({reason})")


def _problem(reason: str) -> tuple[Reason, str]:
    return Reason.REMOVED, f"it was taken out of this set before ({reason})"


def read_tombstones(folder: Path) -> Tombstones:
    """The book of the removed of a set, and that of its workspace; empty where nothing ever left."""
    takedowns = read_takedowns(folder.parent.parent, folder.name)
    path = folder / "meta" / "removed.parquet"
    rows = files.read_table(path) if path.is_file() else []
    if not rows:
        return Tombstones({}, {}, {}, takedowns)
    query = "SELECT row_id, start_ms, end_ms FROM book WHERE is_cut"
    cuts = {row["row_id"]: row for row in files.read_table(folder / "meta" / "plan.parquet", query)}
    pieces: dict[_Piece, str] = {}
    for row in rows:
        if row["source_sha256"] and row["reason"] != Reason.DUPLICATE:
            cut = cuts.get(row["row_id"], {"start_ms": None, "end_ms": None})
            pieces[(row["source_sha256"], cut["start_ms"], cut["end_ms"])] = row["reason"]
    return Tombstones(
        {row["row_id"]: row["reason"] for row in rows if row["row_id"]},
        {row["clip_id"]: row["reason"] for row in rows if row["clip_id"]},
        pieces,
        takedowns,
    )
