"""`catalog.duckdb`: all ledgers of a workspace in one DuckDB file. Deleting it loses nothing."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.catalog.books import find_books, load_books

__all__ = ["CatalogSummary", "rebuild_catalog"]


@dataclass(frozen=True, slots=True)
class CatalogSummary:
    """What the catalogue holds."""

    path: Path
    sets: int
    clips: int
    written: int
    decisions: int

    def as_json(self) -> dict[str, Any]:
        """The summary as JSON values."""
        return {**asdict(self), "path": str(self.path)}


def rebuild_catalog(workspace: Path) -> CatalogSummary:
    """Make `<workspace>/catalog.duckdb` anew from all ledgers, in one go; whatever stood there is replaced whole.

    The file is built beside and renamed, so a damaged catalogue, or one that a viewer holds open, is never opened.

    Raises:
        SetError: a set's books are damaged.
        StorageError: the disk is full.
        Busy: another process rebuilds it.
    """
    path = workspace / "catalog.duckdb"
    books = find_books(workspace)
    with files.lock(workspace / "catalog.lock", what=f"The catalogue {path}"):
        for stale in workspace.glob(f"{files.TEMP_PREFIX}*catalog.duckdb*"):
            stale.unlink(missing_ok=True)
        beside = files.temporary_beside(path)
        try:
            with files.storage_errors(path):
                summary = _build(beside, path, books)
                # The log of the file that is replaced must never be replayed into the new one.
                path.with_name(f"{path.name}.wal").unlink(missing_ok=True)
                with files.committing(path, point="catalog") as target, beside.open("rb") as source:
                    shutil.copyfileobj(source, target, 1 << 20)
        finally:
            beside.unlink(missing_ok=True)
            beside.with_name(f"{beside.name}.wal").unlink(missing_ok=True)
    return summary


def _build(beside: Path, path: Path, books: list[Any]) -> CatalogSummary:
    quoted = str(beside).replace("'", "''")
    connection = files.connect()
    try:
        connection.execute(f"ATTACH '{quoted}' AS catalogue")
        connection.execute("USE catalogue")
        connection.execute("BEGIN")
        load_books(connection, books)
        connection.execute("COMMIT")
        counts = [
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("shard_set", "clip", "written", "decision")
        ]
        connection.execute("USE memory")
        connection.execute("DETACH catalogue")
    finally:
        connection.close()
    return CatalogSummary(path, *counts)
