"""The one committing writer: write beside, fsync, rename, fsync the folder. Locks, hashes, tables and fault points live here too.

Nothing else in the code base renames a file into place. Every step passes a named fault point, so that tests can kill the process or
fail the disk exactly there: `STMAE_FAULT=<point>:<n>` kills at the n-th passage, `<point>:<n>:ENOSPC` or `:EIO` raises instead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from stmae_data.errors import Busy, SetError, StorageError
from stmae_data.records import SCHEMA_VERSION

__all__ = [
    "TEMP_PREFIX",
    "append_line",
    "commit_bytes",
    "commit_json",
    "commit_part",
    "commit_table",
    "committing",
    "connect",
    "copy_table",
    "fault_point",
    "json_text",
    "link_or_copy",
    "lock",
    "read_json",
    "read_table",
    "read_table_metadata",
    "remove_file",
    "sha256_file",
    "sha256_text",
    "storage_errors",
    "sweep_temp",
    "temporary_beside",
]

TEMP_PREFIX = ".tmp-"
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ENODEV, errno.ESTALE}
_passed: dict[str, int] = {}


def fault_point(name: str) -> None:
    """Die or fail here when `STMAE_FAULT` asks for it; otherwise do nothing."""
    wanted = os.environ.get("STMAE_FAULT")
    if not wanted:
        return
    point, _, rest = wanted.partition(":")
    number, _, error_name = rest.partition(":")
    if point != name:
        return
    _passed[name] = _passed.get(name, 0) + 1
    if _passed[name] != int(number or 1):
        return
    if error_name:
        raise OSError(getattr(errno, error_name), os.strerror(getattr(errno, error_name)), name)
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn errors of the disk into StorageError, which ends the program with exit code 74."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK or (error.errno in {errno.EACCES, errno.EPERM} and not os.access(path.parent, os.W_OK)):
            raise StorageError(
                f"Cannot write {path}: {os.strerror(error.errno or 0)}. Nothing half-written is left; make room there, then run the same command again."
            ) from error
        raise


def temporary_beside(path: Path) -> Path:
    """A name beside `path` that nobody else takes: process ids alone come again, as in containers, and are shared between machines."""
    return path.with_name(f"{TEMP_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")


@contextlib.contextmanager
def committing(path: Path, *, point: str) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` whole, or not at all.

    Fault points: `<point>.write`, `<point>.fsync`, `<point>.rename`, `<point>.done`.

    Raises:
        StorageError: the disk is full, read-only or broken.
    """
    temporary = temporary_beside(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as stream:
                fault_point(f"{point}.write")
                yield stream
                stream.flush()
                fault_point(f"{point}.fsync")
                os.fsync(stream.fileno())
            fault_point(f"{point}.rename")
            temporary.replace(path)
            _sync_folder(path.parent)
            fault_point(f"{point}.done")
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_bytes(path: Path, data: bytes, *, point: str) -> None:
    """Write `data` to `path` whole or not at all."""
    with committing(path, point=point) as stream:
        stream.write(data)


def commit_part(part: Path, path: Path, *, point: str) -> None:
    """Put a finished file that grew beside its place, on the same file system, under its final name; fault points as `committing`."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fault_point(f"{point}.fsync")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fault_point(f"{point}.rename")
        part.replace(path)
        _sync_folder(path.parent)
        fault_point(f"{point}.done")


def commit_json(path: Path, value: Any, *, point: str) -> None:
    """Write `value` as sorted, indented JSON, whole or not at all; NaN is refused."""
    commit_bytes(path, json_text(value).encode(), point=point)


def json_text(value: Any) -> str:
    """The one spelling of a JSON document of ours: sorted, indented, ended by a line feed; NaN is refused."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Read one JSON document.

    Raises:
        SetError: the file is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise SetError(f"{path} is not readable JSON ({error}); restore it or rebuild what it belongs to.") from error


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON record to a log; a torn last line is possible after a crash and readers skip it."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        line = (json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
        with path.open("ab", buffering=0) as stream:
            stream.write(line)


def connect(*, memory_limit: str = "2GB", threads: int = 1, temp_directory: Path | None = None) -> Any:
    """An in-memory DuckDB connection that may read and write files of ours, never the network.

    One thread unless said: results and Parquet bytes then do not depend on timing. The caller closes it.
    """
    import duckdb

    connection = duckdb.connect(
        ":memory:",
        config={
            "threads": threads,
            "memory_limit": memory_limit,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "preserve_insertion_order": True,
        },
    )
    if temp_directory is not None:
        connection.execute("SET temp_directory = ?", [str(temp_directory)])
    return connection


def commit_table(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    point: str,
    order_by: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write rows as zstd Parquet, whole or not at all; absent keys are NULL, `schema_version` and `metadata` stand in the footer."""
    connection = connect()
    try:
        fields = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
        connection.execute(f"CREATE TABLE book ({fields})")
        for chunk in _chunks(rows, 2000):
            text = json.dumps(
                [{name: row.get(name) for name in columns} for row in chunk], allow_nan=False, default=str
            )
            structure = json.dumps([f"STRUCT({fields})"])
            connection.execute(
                "INSERT INTO book SELECT unnest(from_json(?::JSON, ?), max_depth := 2)", [text, structure]
            )
        query = f"SELECT * FROM book{f' ORDER BY {order_by}' if order_by else ''}"
        copy_table(connection, query, path, point=point, metadata=metadata)
    finally:
        connection.close()


def copy_table(
    connection: Any, query: str, path: Path, *, point: str, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the result of a trusted query as Parquet through the committing writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = temporary_beside(path)
    try:
        with storage_errors(path):
            footer = {"schema_version": str(SCHEMA_VERSION), **(metadata or {})}
            keys = ", ".join(f"{name}: {_quote(value)}" for name, value in footer.items())
            connection.execute(
                f"COPY ({query}) TO {_quote(str(beside))} (FORMAT parquet, COMPRESSION zstd, KV_METADATA {{{keys}}})"
            )
            data = beside.read_bytes()
        commit_bytes(path, data, point=point)
    finally:
        beside.unlink(missing_ok=True)


def read_table(
    path: Path | Sequence[Path], query: str = "SELECT * FROM book", parameters: Sequence[Any] = ()
) -> list[dict[str, Any]]:
    """Rows of one or several Parquet tables as dicts; `query` reads from `book`.

    Raises:
        SetError: a table is missing or damaged.
    """
    import duckdb

    paths = [str(path)] if isinstance(path, Path) else [str(each) for each in path]
    if not paths:
        return []
    connection = connect()
    try:
        connection.execute(
            "CREATE VIEW book AS SELECT * FROM read_parquet([" + ", ".join(_quote(each) for each in paths) + "])"
        )
        cursor = connection.execute(query, list(parameters))
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]
    except duckdb.Error as error:
        raise SetError(
            f"{paths[0]} cannot be read as a table ({str(error).splitlines()[0]}); rebuild what it belongs to."
        ) from error
    finally:
        connection.close()


def read_table_metadata(path: Path) -> dict[str, str]:
    """What the footer of a Parquet table says: `schema_version` and whatever its writer added.

    Raises:
        SetError: the table is missing or damaged.
    """
    import duckdb

    connection = connect()
    try:
        found = connection.execute("SELECT key, value FROM parquet_kv_metadata(?)", [str(path)]).fetchall()
    except duckdb.Error as error:
        raise SetError(
            f"{path} cannot be read as a table ({str(error).splitlines()[0]}); rebuild what it belongs to."
        ) from error
    finally:
        connection.close()
    return {key.decode(): value.decode() for key, value in found}


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _chunks(rows: Iterable[Mapping[str, Any]], size: int) -> Iterator[list[Mapping[str, Any]]]:
    chunk: list[Mapping[str, Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@contextlib.contextmanager
def lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold `path` by flock; the kernel frees it when we die.

    Raises:
        Busy: another process holds it; the message names its process id.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = (os.pread(descriptor, 32, 0).decode(errors="replace").split() or ["unknown"])[0]
            raise Busy(
                f"{what} is being written by process {holder}; wait for it to end, then run the same command again."
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def sweep_temp(folder: Path) -> None:
    """Remove what a killed writer left in `folder` (not below). Call it only under the folder's lock."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(TEMP_PREFIX):
                path.unlink(missing_ok=True)


def remove_file(path: Path, *, point: str) -> None:
    """Remove a file of ours and make the removal durable."""
    with storage_errors(path):
        fault_point(f"{point}.remove")
        path.unlink(missing_ok=True)
        _sync_folder(path.parent)


def link_or_copy(source: Path, target: Path, *, point: str) -> None:
    """Put the bytes of `source` at `target` whole: a hard link where the file system can, else a copy."""
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        fault_point(f"{point}.link")
        beside = temporary_beside(target)
        try:
            beside.hardlink_to(source)
        except OSError as error:
            if error.errno in _DISK:
                raise
            commit_bytes(target, source.read_bytes(), point=point)
            return
        beside.replace(target)
        _sync_folder(target.parent)
        fault_point(f"{point}.done")


def sha256_text(text: str) -> str:
    """sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
