"""The clips to compare, as one DuckDB table: from sealed sets, selections, and bare annotation tables."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stmae_data import files
from stmae_data.errors import SetError, SourceError
from stmae_data.records import SetRef
from stmae_data.shards import ShardSet, fingerprint_path, open_set, set_digest
from stmae_data.sources.tables import read_table_clips

__all__ = [
    "EVALUATION_SPLITS",
    "Pool",
    "comparing",
    "fingerprint_files",
    "is_table",
    "load_pool",
    "pool_of",
    "sealed_sets",
]

EVALUATION_SPLITS = ("test", "val", "validate", "validation")

_CLIP = """CREATE TABLE clip (
    number INTEGER, pool INTEGER, row_id VARCHAR, clip_id VARCHAR, platform VARCHAR, platform_id VARCHAR, start_ms BIGINT, end_ms BIGINT,
    source_sha256 VARCHAR, stream_sha256 VARCHAR, seconds DOUBLE, pixels BIGINT, bytes BIGINT, release VARCHAR, media_kind VARCHAR)"""

_TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet")


@dataclass(frozen=True, slots=True)
class Pool:
    """One side of a comparison: a split of a set, a selection of it, or an annotation table.

    `digest` names exactly what was compared: the split's tars, the selection, or the table's bytes.
    """

    label: str
    digest: str
    reference: SetRef | None = None
    found: ShardSet | None = None
    selection: Path | None = None
    table: Path | None = None

    @property
    def set_name(self) -> str:
        """Name of the set, or the label of a table."""
        return self.label if self.reference is None else self.reference.set_name

    @property
    def has_media(self) -> bool:
        """Whether there are bytes, streams and hashes to compare, not ids alone."""
        return self.found is not None


def sealed_sets(workspace: Path) -> list[str]:
    """Names of every sealed set of a workspace, sorted."""
    root = workspace / "sets"
    return sorted(each.parent.parent.name for each in root.glob("*/meta/set.json")) if root.is_dir() else []


def is_table(text: str) -> bool:
    """Whether a reference is the path of a table, by its ending, rather than a set, whose name may hold dots too."""
    return Path(text).suffix.casefold() in _TABLE_SUFFIXES


def pool_of(workspace: Path, text: str | SetRef, *, default_split: str = "train") -> Pool:
    """The pool a reference names: SET[:SPLIT][/SELECTION], or the path of a csv, json or parquet table.

    Raises:
        SetError: no such set, split or selection; SourceError: the table cannot be read; UsageError: neither.
    """
    if isinstance(text, str) and is_table(text):
        path = Path(text)
        if not path.is_file():
            raise SourceError(f"There is no table {text}; name a csv, json or parquet file, or a set as SET[:SPLIT].")
        return Pool(path.name, files.sha256_file(path), table=path)
    reference = SetRef.parse(text, default_split=default_split) if isinstance(text, str) else text
    found = open_set(workspace, reference.set_name, books_only=True)
    digest = set_digest(found.of_split(reference.split))
    selection = None
    if reference.selection is not None:
        selection = workspace / "selections" / f"{reference.selection}.parquet"
        description = selection.with_suffix(".json")
        if not description.is_file():
            raise SetError(
                f"There is no selection {reference.selection!r} in {workspace}; make it: stmae-data select {reference.selection} --from {found.name}"
            )
        said = files.read_json(description)
        if {parent["name"]: parent["digest"] for parent in said["parents"]}.get(found.name) != found.digest:
            raise SetError(
                f"Selection {reference.selection} was made from another state of {found.name}; make it again under a new name: stmae-data select."
            )
        digest = str(said["digest"])
    return Pool(str(reference), digest, reference, found, selection)


@contextlib.contextmanager
def comparing(*, memory_limit: str = "4GB", threads: int | None = None) -> Iterator[Any]:
    """A DuckDB connection with an empty table `clip`; spills into the system's temporary folder."""
    with tempfile.TemporaryDirectory(prefix="stmae-dedup-") as folder:
        connection = files.connect(
            memory_limit=memory_limit, threads=threads or os.cpu_count() or 1, temp_directory=Path(folder)
        )
        try:
            # Nothing here depends on the order of rows: whatever leaves is sorted, and big joins then stay out of core.
            connection.execute("SET preserve_insertion_order = false")
            connection.execute(_CLIP)
            yield connection
        finally:
            connection.close()


def load_pool(connection: Any, pool: Pool, number: int) -> int:
    """Add the written clips of a pool to `clip` under pool `number`; returns how many.

    Clips are numbered over all pools in the order best first, the order in which one of two copies is kept: longer, then more pixels,
    then more bytes, then by id.

    Raises:
        SetError: a ledger is missing or damaged; SourceError: a table cannot be read or has no rows.
    """
    start = int(connection.execute("SELECT coalesce(max(number) + 1, 0) FROM clip").fetchall()[0][0])
    if pool.table is not None:
        _insert_table(connection, pool.table, number, start)
    else:
        assert pool.found is not None and pool.reference is not None
        _insert_ledgers(connection, pool, number, start)
    count = connection.execute("SELECT count(*) FROM clip WHERE pool = ?", [number]).fetchall()[0][0]
    return int(count)


def _insert_ledgers(connection: Any, pool: Pool, number: int, start: int) -> None:
    import duckdb

    assert pool.found is not None and pool.reference is not None
    chosen, parameters = "", [[str(path) for path in pool.found.ledgers(pool.reference.split)]]
    if pool.selection is not None:
        chosen = "AND clip_id IN (SELECT clip_id FROM read_parquet(?))"
        parameters.append([str(pool.selection)])
    try:
        connection.execute(
            f"""INSERT INTO clip
                SELECT {start} - 1 + row_number() OVER (ORDER BY seconds DESC NULLS LAST, pixels DESC NULLS LAST, bytes DESC NULLS LAST, clip_id, row_id),
                       {number}, row_id, clip_id, platform, platform_id, start_ms, end_ms, source_sha256, stream_sha256, seconds, pixels, bytes,
                       release, media_kind
                FROM (SELECT *, round(coalesce(duration_seconds, stored_seconds), 2) AS seconds, width_px::BIGINT * height_px AS pixels,
                             source_bytes AS bytes, annotations[1].release AS release
                      FROM read_parquet(?) WHERE outcome = 'written' {chosen})""",
            parameters,
        )
    except duckdb.Error as error:
        raise SetError(
            f"A ledger of {pool.label} cannot be read ({str(error).splitlines()[0]}); verify the set: stmae-data verify {pool.set_name}."
        ) from error


def _insert_table(connection: Any, path: Path, number: int, start: int) -> None:
    rows = read_table_clips(path)
    if not rows:
        raise SourceError(f"The table {path} has no rows, so nothing can be compared; restore it from its source.")
    unknown = -1
    columns = {
        "number": np.arange(start, start + len(rows), dtype=np.int64),
        "platform_id": np.array([row.platform_id for row in rows], dtype=object),
        "start_ms": np.array([unknown if row.start_ms is None else row.start_ms for row in rows], dtype=np.int64),
        "end_ms": np.array([unknown if row.end_ms is None else row.end_ms for row in rows], dtype=np.int64),
    }
    connection.register("table_rows", columns)
    connection.execute(
        f"""INSERT INTO clip
            SELECT number, {number}, number::VARCHAR, platform_id, ?, platform_id, nullif(start_ms, -1), nullif(end_ms, -1),
                   NULL, NULL, NULL, NULL, NULL, NULL, NULL
            FROM table_rows""",
        [rows[0].platform],  # a table names clips of one platform
    )
    connection.unregister("table_rows")


def fingerprint_files(pool: Pool) -> list[Path]:
    """The fingerprint tables of a pool that exist."""
    if pool.found is None or pool.reference is None:
        return []
    paths = [fingerprint_path(pool.found.folder, shard.name) for shard in pool.found.of_split(pool.reference.split)]
    return [path for path in paths if path.is_file()]
