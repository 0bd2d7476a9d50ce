"""What left a set stays away: clips of `meta/removed.parquet` are planned as dropped, whatever row they come back under."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stmae_data import files
from stmae_data.errors import Reason

__all__ = ["Tombstones", "read_tombstones"]


@dataclass(frozen=True, slots=True)
class Tombstones:
    """Clips that were taken out, by row, by clip id and by source bytes, each with the reason it went for.

    The bytes of a duplicate stay in the set under the clip it repeats, so duplicates are known by row and clip id alone.
    """

    row_ids: dict[str, str]
    clip_ids: dict[str, str]
    source_sha256: dict[str, str]

    def problem(self, row_id: str | None, clip_id: str | None, source_sha256: str | None) -> tuple[Reason, str] | None:
        """Why such a row is dropped without a look at it; None for one that was never taken out."""
        for book, name in (
            (self.row_ids, row_id),
            (self.clip_ids, clip_id),
            (self.source_sha256, source_sha256),
        ):
            if name is not None and name in book:
                return Reason.REMOVED, f"it was taken out of this set before ({book[name]})"
        return None


def read_tombstones(folder: Path) -> Tombstones:
    """The book of the removed of a set; empty where nothing ever left."""
    path = folder / "meta" / "removed.parquet"
    rows = files.read_table(path) if path.is_file() else []
    return Tombstones(
        {row["row_id"]: row["reason"] for row in rows if row["row_id"]},
        {row["clip_id"]: row["reason"] for row in rows if row["clip_id"]},
        {
            row["source_sha256"]: row["reason"]
            for row in rows
            if row["source_sha256"] and row["reason"] != Reason.DUPLICATE
        },
    )
