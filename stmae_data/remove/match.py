"""Which rows of a set are meant: by what they are called, and by their bytes, whatever these are called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stmae_data import files
from stmae_data.catalog import find_books, insert_known
from stmae_data.errors import SelectionError
from stmae_data.records import LEDGER_COLUMNS
from stmae_data.remove.wanted import Wanted, place_of

__all__ = ["Hit", "Kin", "hits_in", "kin_in"]

_COLUMNS: Final = (
    "row_id",
    "clip_id",
    "parent_clip_id",
    "platform",
    "platform_id",
    "start_ms",
    "end_ms",
    "split",
    "shard",
    "outcome",
    "reason",
    "url",
    "resolved_url",
    "source_uri",
    "uploader_id",
    "channel_id",
    "source_sha256",
    "stream_sha256",
    "stored_sha256",
    "media_bytes",
)
# What two spellings of an address have in common: host and path, without scheme, user, port of the scheme, query and last slash.
_PLACE: Final = r"(?i)^[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?([^/?#:]*)(?::(?:80|443))?([^?#]*)"


@dataclass(frozen=True, slots=True)
class Hit:
    """One row of one set that is meant, and why. `is_waiting`: the set is still being built, or the row is planned alone.

    `start_ms` and `end_ms` are the piece of the source that the row is; None where it is all of it.
    """

    set_name: str
    row_id: str
    clip_id: str | None
    is_written: bool
    is_removed: bool
    is_waiting: bool
    source_uri: str | None
    stored_sha256: str | None
    source_sha256: str | None
    start_ms: int | None
    end_ms: int | None
    why: str


Kin = tuple[str | None, str | None, int | None, int | None]
"""What tells bytes apart, whatever they are called: sha256 as stored, sha256 of the source with start and end of the piece that was cut
out of it, or without them where all of it is meant."""


def kin_in(workspace: Path, name: str, wanted: Wanted) -> list[Kin]:
    """The bytes of everything in a set that is meant, removed before or not: they may stand elsewhere under another id."""
    with _matching(workspace, name, wanted) as (_, connection):
        found: list[Kin] = connection.execute(
            """SELECT DISTINCT stored_sha256, source_sha256, piece_start, piece_end FROM row
               WHERE row_id IN (SELECT row_id FROM hit) AND coalesce(stored_sha256, source_sha256) IS NOT NULL"""
        ).fetchall()
    return found


def hits_in(workspace: Path, name: str, wanted: Wanted, kin: Iterable[Kin]) -> tuple[list[Hit], set[tuple[str, str]]]:
    """Rows of a set that are meant, and which of the wanted things they answer."""
    with _matching(workspace, name, wanted) as (is_sealed, connection):
        matched = set(connection.execute("SELECT DISTINCT kind, value FROM hit").fetchall())
        connection.execute("CREATE TABLE kin (stored VARCHAR, source VARCHAR, start_ms BIGINT, end_ms BIGINT)")
        _fill(connection, "kin", sorted(kin, key=str))
        connection.execute(
            """INSERT INTO hit SELECT row_id, 'bytes', '' FROM
                 (SELECT row_id FROM row JOIN kin ON stored_sha256 = stored UNION
                  SELECT row_id FROM row JOIN kin ON source_sha256 = source AND (kin.start_ms IS NULL AND kin.end_ms IS NULL
                    OR piece_start IS NOT DISTINCT FROM kin.start_ms AND piece_end IS NOT DISTINCT FROM kin.end_ms))
               WHERE row_id NOT IN (SELECT row_id FROM hit)"""
        )
        rows = connection.execute(
            """SELECT row_id, clip_id, outcome IS NOT DISTINCT FROM 'written', reason IS NOT DISTINCT FROM 'removed',
                      place = 'plan' OR ?, source_uri,
                      stored_sha256, source_sha256, piece_start, piece_end,
                      (SELECT string_agg(DISTINCT kind, ', ' ORDER BY kind) FROM hit WHERE hit.row_id = row.row_id)
               FROM row WHERE row_id IN (SELECT row_id FROM hit) ORDER BY row_id""",
            [not is_sealed],
        ).fetchall()
    return [Hit(name, *row) for row in rows], matched


@contextlib.contextmanager
def _matching(workspace: Path, name: str, wanted: Wanted) -> Iterator[tuple[bool, Any]]:
    """Whether the set is sealed, and a connection with its rows as `row` (those only planned too) and `hit`: which of them are meant."""
    book = find_books(workspace, [name])[0]
    columns = {column: LEDGER_COLUMNS[column] for column in _COLUMNS}
    fields = ", ".join(f"{column} {kind}" for column, kind in columns.items())
    connection = files.connect()
    try:
        connection.execute(f"CREATE TABLE row (place VARCHAR, {fields}, piece_start BIGINT, piece_end BIGINT)")
        connection.execute(f"CREATE TABLE plan (place VARCHAR, {fields}, is_cut BOOLEAN)")
        insert_known(connection, "row", columns, book.ledgers, {"place": "ledger"})
        plan = book.folder / "meta" / "plan.parquet"
        if plan.is_file():
            insert_known(connection, "plan", {**columns, "is_cut": "BOOLEAN"}, [plan], {"place": "plan"})
            connection.execute(
                "INSERT INTO row BY NAME SELECT * EXCLUDE (is_cut) FROM plan ANTI JOIN row USING (row_id)"
            )
        connection.execute(
            """UPDATE row SET piece_start = start_ms, piece_end = end_ms
               WHERE row_id NOT IN (SELECT row_id FROM plan WHERE is_cut IS FALSE)"""
        )
        connection.execute("CREATE TABLE wanted (kind VARCHAR, value VARCHAR, place VARCHAR, youtube VARCHAR)")
        told = [(kind, value, *(place_of(value) if kind == "url" else (None, None))) for kind, value in wanted.pairs()]
        _fill(connection, "wanted", told)
        connection.execute(_MATCH)
        _refuse_vague(connection, name)
        yield book.seal is not None, connection
    finally:
        connection.close()


def _fill(connection: Any, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows at once: a list of opt-outs has thousands."""
    if rows:
        columns = [list(column) for column in zip(*rows, strict=True)]
        marks = ", ".join("unnest(?)" for _ in columns)
        connection.execute(f"INSERT INTO {table} SELECT {marks}", columns)


_MATCH: Final = f"""
    CREATE TABLE hit AS
    SELECT row_id, kind, value FROM
      (SELECT row_id, unnest([clip_id, platform_id, parent_clip_id, regexp_extract(clip_id, '^web_[0-9a-f]{{32}}')]) AS name FROM row)
      JOIN wanted ON kind = 'id' AND value = name
    UNION
    SELECT row_id, kind, value FROM (SELECT row_id, unnest([uploader_id, channel_id]) AS name FROM row)
      JOIN wanted ON kind = 'uploader' AND value = name
    UNION
    SELECT row_id, kind, value FROM (SELECT row_id, unnest([source_sha256, stream_sha256, stored_sha256]) AS name FROM row)
      JOIN wanted ON kind = 'hash' AND value = name
    UNION
    SELECT row_id, kind, value FROM row JOIN wanted ON youtube = platform_id AND platform = 'youtube'
    UNION
    SELECT row_id, kind, value FROM
      (SELECT row_id, lower(regexp_extract(address, '{_PLACE}', 1)) || rtrim(regexp_extract(address, '{_PLACE}', 2), '/') AS there
       FROM (SELECT row_id, unnest([url, resolved_url, source_uri]) AS address FROM row) WHERE address LIKE '%://%')
      JOIN wanted ON wanted.place = there AND youtube IS NULL
"""


def _refuse_vague(connection: Any, name: str) -> None:
    """The books keep addresses without their query; one that says which video it is only there must not take others along.

    Raises:
        SelectionError: such an address stands for several clips.
    """
    vague = connection.execute(
        """SELECT value, count(DISTINCT row_id) AS n FROM hit JOIN wanted USING (kind, value)
           WHERE kind = 'url' AND youtube IS NULL AND contains(value, '?') GROUP BY value HAVING n > 1 ORDER BY value"""
    ).fetchall()
    if vague:
        shown = str(vague[0][0]).partition("?")[0]
        raise SelectionError(
            f"{shown}?… stands for {vague[0][1]} clips of {name}, since the books keep addresses without what follows the question mark; "
            "name them by --ids or --hashes."
        )
