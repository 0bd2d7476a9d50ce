"""What the annotations of a set promise against what was there and what became of it: `meta/reconciliation.parquet`, a line a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stmae_data import files

__all__ = ["count_failed", "merge_reconciliation"]

_COLUMNS = {
    "split": "VARCHAR",
    "label": "VARCHAR",
    "annotated": "BIGINT",
    "present": "BIGINT",
    "missing": "BIGINT",
    "replaced": "BIGINT",
    "unannotated": "BIGINT",
    "failed": "BIGINT",
}


def merge_reconciliation(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Note what a source says of its classes; classes it does not speak of keep what was said before."""
    if lines:
        said = {(line["split"], line["label"]): {"failed": 0, **line} for line in lines}
        _commit(folder, {**_read(folder), **said})


def count_failed(folder: Path, ledgers: Sequence[Path]) -> None:
    """Note how many clips of each class failed, as the ledgers tell; nothing is written where that is known already."""
    known = _read(folder)
    if not known:
        return
    query = """SELECT split, annotations[1].label_raw AS label, count(*) AS failed FROM book
               WHERE outcome = 'failed' GROUP BY ALL"""
    failed = {(row["split"], row["label"]): row["failed"] for row in files.read_table(ledgers, query)}
    counted = {key: {**line, "failed": failed.get(key, 0)} for key, line in known.items()}
    if counted != known:
        _commit(folder, counted)


_Lines = dict[tuple[str, str | None], dict[str, Any]]


def _path(folder: Path) -> Path:
    return folder / "meta" / "reconciliation.parquet"


def _read(folder: Path) -> _Lines:
    rows = files.read_table(_path(folder)) if _path(folder).exists() else []
    return {(row["split"], row["label"]): row for row in rows}


def _commit(folder: Path, lines: _Lines) -> None:
    files.commit_table(_path(folder), lines.values(), _COLUMNS, point="reconciliation")
