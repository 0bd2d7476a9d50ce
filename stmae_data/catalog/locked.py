"""SQL written by the operator, in a locked-down connection of its own.

Our code opens a database of its own, copies the books it may see into tables, takes away every way to the outside and to the settings,
then runs the text: exactly one SELECT statement, in a read-only transaction, under a time limit. The tables stand in a nameless file,
so that books larger than the memory have room. No text filter stands in for the lock:
`n>1) or (select count(*) from read_csv('x'))` is one SELECT statement to the parser, and it is the lock that refuses it.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from stmae_data import files
from stmae_data.catalog.books import SetBooks, find_books, load_books
from stmae_data.errors import SelectionError

__all__ = ["Answer", "locked_select", "sql"]

_CHUNK_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What a SELECT returned; `is_cut` says that rows beyond `max_rows` were left out."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    is_cut: bool = False

    def records(self) -> list[dict[str, Any]]:
        """The rows as dicts; of columns with one name the last wins."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def locked_select(
    workspace: Path,
    text: str,
    *,
    sets: Iterable[str] | None = None,
    parameters: Sequence[Any] = (),
    timeout_seconds: float = 30.0,
    max_rows: int | None = None,
    memory_limit: str = "2GB",
) -> Answer:
    """Run one SELECT over the ledgers of `sets` (all of the workspace when None); see `books` for the tables it may read.

    Args:
        text: exactly one SELECT statement; values of inputs go through `?` and `parameters`.
        timeout_seconds: wall time the text may take, loading the books apart.
        max_rows: stop after so many rows.

    Raises:
        SelectionError: the text is not one SELECT, reaches outside the books, fails or takes too long; no room for the books.
        SetError: a set is missing or damaged.
    """
    books = find_books(workspace, sets)
    connection = files.connect(memory_limit=memory_limit)
    try:
        _lock_in(connection, books, has_embeddings="embedding" in text.casefold())
        _require_one_select(connection, text)
        return _run(connection, text, parameters, timeout_seconds, max_rows)
    finally:
        connection.close()


def sql(workspace: Path, text: str, *, timeout_seconds: float = 30.0, max_rows: int | None = None) -> Answer:
    """`locked_select` over every set of the workspace: what `stmae-data sql` runs."""
    return locked_select(workspace, text, timeout_seconds=timeout_seconds, max_rows=max_rows)


def _lock_in(connection: Any, books: Sequence[SetBooks], *, has_embeddings: bool) -> None:
    """Load the books into a file that loses its name before any text runs, then lock the connection.

    In memory, books of a million clips would spill into a folder that the text could read. The open file serves the tables, read-only,
    and nothing is left of it when the connection closes, however it ends.
    """
    try:
        # Nothing ever spills into the current folder; this cannot be said any more once something has.
        connection.execute("SET temp_directory = ''")
        with tempfile.TemporaryDirectory(prefix="stmae-sql-") as folder:
            place = str(Path(folder, "books.duckdb")).replace("'", "''")
            # Row groups are buffered whole: small ones bound the memory where descriptions are long.
            connection.execute(f"ATTACH '{place}' AS books (ROW_GROUP_SIZE 16384)")
            connection.execute("USE books")
            connection.execute("BEGIN")
            load_books(connection, books, has_embeddings=has_embeddings)
            connection.execute("COMMIT")
            connection.execute("USE memory")
            connection.execute("DETACH books")
            connection.execute(f"ATTACH '{place}' AS books (READ_ONLY)")
            connection.execute("USE books")
        # In this order: after the last line no setting can change again. Without replacements a table name cannot reach variables of this
        # Python process.
        for setting in ("python_enable_replacements = false", "enable_external_access = false"):
            connection.execute(f"SET {setting}")
        connection.execute("SET lock_configuration = true")
    except (duckdb.Error, OSError) as error:
        raise SelectionError(
            f"The books cannot be laid out for SQL in {tempfile.gettempdir()}: {_first_line(error)} "
            "Make room there, or name another folder in TMPDIR."
        ) from error


def _require_one_select(connection: Any, text: str) -> None:
    try:
        text.encode()
        statements = connection.extract_statements(text)
    except (duckdb.Error, UnicodeError) as error:
        raise SelectionError(f"The SQL cannot be read: {_first_line(error)}") from error
    kinds = [statement.type.name for statement in statements]
    if kinds != ["SELECT"]:
        raise SelectionError(f"The SQL must be exactly one SELECT statement; found {', '.join(kinds) or 'none'}.")


def _run(connection: Any, text: str, parameters: Sequence[Any], timeout_seconds: float, max_rows: int | None) -> Answer:
    deadline = time.monotonic() + timeout_seconds
    rows: list[tuple[Any, ...]] = []
    is_cut = False
    try:
        with _interrupting(connection, timeout_seconds):
            connection.execute("BEGIN TRANSACTION READ ONLY")
            cursor = connection.execute(text, list(parameters))
            columns = [column[0] for column in cursor.description]
            while chunk := cursor.fetchmany(_CHUNK_ROWS):
                rows.extend(chunk)
                if max_rows is not None and len(rows) > max_rows:
                    rows, is_cut = rows[:max_rows], True
                    break
                if time.monotonic() > deadline:
                    raise duckdb.InterruptException("too many rows")
    except duckdb.InterruptException as error:
        raise SelectionError(
            f"The SQL was stopped after {timeout_seconds:g} seconds; ask for less, or allow more time."
        ) from error
    except (duckdb.Error, UnicodeError, ValueError, OverflowError) as error:
        raise SelectionError(
            f"The SQL cannot be run: {_first_line(error)} It may read the tables of the catalogue and nothing else."
        ) from error
    return Answer(columns, rows, is_cut)


@contextlib.contextmanager
def _interrupting(connection: Any, seconds: float) -> Iterator[None]:
    timer = threading.Timer(max(0.0, seconds), connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _first_line(error: BaseException) -> str:
    """The first line of a message, one sentence, at most 300 characters."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0].strip()[:300]
    return text if text.endswith((".", "!", "?")) else f"{text}."
