"""Verify: is the set on disk what was committed? Every invariant, each damage under its own code, nothing is ever raised for damage.

Per shard: it is there, of the size and sha256 that `set.json` lists, whole to its two end blocks; its samples are json then media, every
field there; its ledger has the listed sha256, the same keys, the same offsets, and the sha256 of every stored clip. Over the set: the
seal's digest and counts, one outcome per planned row, keys once, duplicates that lead somewhere, nothing half-done left over.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb

from stmae_data import files
from stmae_data.catalog import insert_known
from stmae_data.errors import SetError, UsageError
from stmae_data.records import LEDGER_COLUMNS, set_folder
from stmae_data.shards import ledger_path
from stmae_data.stores import Store
from stmae_data.verify.damage import Damage, DamageCode, Findings, VerifyReport
from stmae_data.verify.deep import check_decoding
from stmae_data.verify.shard import check_shard
from stmae_data.verify.whole import Seal, check_leftovers, check_plan, check_rows, check_seal_counts, read_seal

__all__ = ["Damage", "DamageCode", "VerifyReport", "verify"]

_COLUMNS = [
    "row_id",
    "split",
    "shard",
    "ordinal",
    "clip_id",
    "start_ms",
    "end_ms",
    "annotations",
    "outcome",
    "reason",
    "duplicate_of",
    "decision_id",
    "license",
    "source_sha256",
    "stored_sha256",
    "stored_bytes",
    "stored_fps",
    "stored_num_frames",
    "stored_width_px",
    "stored_height_px",
    "stored_seconds",
    "json_offset",
    "json_bytes",
    "media_offset",
    "media_bytes",
    "media_kind",
]
"""The ledger columns that are compared with something."""


def verify(
    workspace: Path,
    name: str | None = None,
    *,
    quick: bool = False,
    deep: bool = False,
    workers: int | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Check every invariant of a set.

    Args:
        workspace: the workspace, or with `name` None the folder of the set itself.
        quick: presence and sizes only; no tar or ledger is read.
        deep: also decode a sample of clips with the fast reader and in full, and compare.
        workers: threads that read shards; as many as there are cores, up to 4, when None.
        advance: told (bytes read, bytes in all) as shards are read.

    Raises:
        SetError: there is no such folder.
    """
    started = time.monotonic()
    folder = workspace if name is None else set_folder(workspace, name)
    if not folder.is_dir():
        known = sorted(each.name for each in folder.parent.iterdir()) if folder.parent.is_dir() else []
        raise SetError(f"There is no set at {folder}; beside it stand {', '.join(known[:20]) or 'none'}.")
    findings = Findings()
    counter = _Counter(advance)
    seal = read_seal(folder, name, findings)
    check_leftovers(folder, seal, findings)
    if seal is not None:
        store = Store.of(folder)
        if deep and store is not None:
            raise UsageError(
                f"{folder.name} stands on {store.url}; leave out --deep, or verify a copy of it in a folder."
            )
        present = _check_presence(folder, seal, store, findings)
        if not quick:
            _check_contents(folder, seal, present, store, findings, counter, workers or min(4, os.cpu_count() or 1))
        if deep and not findings.damages():
            check_decoding(folder, seal, findings)
    return VerifyReport(findings.damages(), counter.bytes, time.monotonic() - started)


class _Counter:
    """Counts bytes read; an addition may get lost between threads in the display, never in a check."""

    def __init__(self, advance: Callable[[int, int], None] | None) -> None:
        self.bytes = 0
        self.total = 0
        self._advance = advance

    def __call__(self, count: int) -> None:
        self.bytes += count
        if self._advance is not None:
            self._advance(self.bytes, self.total)


def _check_presence(folder: Path, seal: Seal, store: Store | None, findings: Findings) -> list[dict[str, Any]]:
    """Existence and size of every listed file; returns the lines whose tar can be read."""
    present = []
    there = {} if store is None else store.names()
    for line in seal.lines:
        tar = folder / f"{line['name']}.tar"
        size = tar.stat().st_size if tar.is_file() else there.get(tar.name)
        if size is None:
            findings.add(
                DamageCode.SHARD_MISSING,
                tar.name,
                f"is missing with its {line['samples']} samples; build again to restore it",
            )
        else:
            if size != line["bytes"]:
                findings.add(DamageCode.SHARD_SIZE, tar.name, f"has {size} bytes, set.json says {line['bytes']}")
            present.append(line)
        if not ledger_path(folder, line["name"]).is_file():
            findings.add(
                DamageCode.LEDGER_MISSING,
                f"meta/ledger/{line['name']}.parquet",
                "is missing; build again to restore it",
            )
    return present


def _check_contents(
    folder: Path,
    seal: Seal,
    present: Sequence[dict[str, Any]],
    store: Store | None,
    findings: Findings,
    counter: _Counter,
    workers: int,
) -> None:
    counter.total = sum(line["bytes"] for line in present)
    connection = files.connect()
    try:
        readable = _read_ledgers(connection, folder, seal, findings)
        is_complete = len(readable) == len(seal.lines)
        check_rows(connection, findings)
        check_seal_counts(connection, seal, is_complete, findings)
        check_plan(connection, folder, seal, is_complete, findings)

        def check(line: dict[str, Any]) -> set[str]:
            rows = _written_rows(connection, line["name"]) if line["name"] in readable else None
            with _here(folder / f"{line['name']}.tar", store) as tar:
                return check_shard(tar, line, rows, findings, counter)

        with ThreadPoolExecutor(workers) as pool:
            kinds = set().union(*pool.map(check, present))
    finally:
        connection.close()
    if len(kinds) > 1:
        findings.add(
            DamageCode.MEMBERS_UNEVEN,
            "meta/set.json",
            f"samples of the set end in {', '.join(sorted(kinds))}; wanted one kind",
        )


@contextlib.contextmanager
def _here(tar: Path, store: Store | None) -> Iterator[Path]:
    """A tar to read: where it stands, or a copy from the store for as long as it is read."""
    if store is None or tar.is_file():
        yield tar
        return
    with tempfile.TemporaryDirectory(prefix="stmae-verify-") as copies:
        store.get(tar.name, Path(copies) / tar.name)
        yield Path(copies) / tar.name


def _read_ledgers(connection: Any, folder: Path, seal: Seal, findings: Findings) -> set[str]:
    """Read all ledgers into the table `book`, with their shard's name as `file`; returns the names that could be read."""
    columns = {column: LEDGER_COLUMNS[column] for column in _COLUMNS}
    fields = ", ".join(f"{column} {kind}" for column, kind in columns.items())
    connection.execute(f"CREATE TABLE book (file VARCHAR, {fields})")
    readable = set()
    for line in seal.lines:
        path = ledger_path(folder, line["name"])
        shown = f"meta/ledger/{line['name']}.parquet"
        if not path.is_file():
            continue
        try:
            own = files.sha256_file(path)
        except OSError as error:
            findings.add(DamageCode.UNREADABLE, shown, f"cannot be read: {error.strerror or error}")
            continue
        if own != line["ledger_sha256"]:
            findings.add(DamageCode.LEDGER_SHA256, shown, f"sha256 is {own}, set.json says {line['ledger_sha256']}")
            continue  # changed bytes are not handed to a parser
        try:
            insert_known(connection, "book", columns, [path], {"file": line["name"]})
        except duckdb.Error as error:
            findings.add(
                DamageCode.LEDGER_UNREADABLE, shown, f"cannot be read as a table ({str(error).splitlines()[0]:.160})"
            )
        else:
            readable.add(line["name"])
    return readable


def _written_rows(connection: Any, name: str) -> list[dict[str, Any]]:
    """The written rows of one ledger in stored order; a cursor of its own, since threads ask."""
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT * EXCLUDE (annotations), list_transform(annotations, lambda a: a.label_raw) AS labels
               FROM book WHERE file = ? AND outcome = 'written' ORDER BY ordinal""",
            [name],
        )
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]
