"""What a set holds in numbers: `stats`, and the list of sets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.catalog.books import SetBooks, find_books, load_books

__all__ = ["SetStats", "SetSummary", "SplitStats", "list_sets", "opened", "stats"]

_SECONDS = "coalesce(stored_seconds, duration_seconds)"


@dataclass(frozen=True, slots=True)
class SplitStats:
    """One split in numbers; `encodings` counts how clips are stored; `durations_seconds` holds min, p5, median, p95 and max of the written clips."""

    split: str
    planned: int
    written: int
    dropped: int
    failed: int
    reasons: dict[str, int]
    flags: dict[str, int]
    encodings: dict[str, int]
    shards: int
    classes: int
    hours: float
    stored_bytes: int
    source_bytes: int
    durations_seconds: dict[str, float]

    @property
    def is_conserved(self) -> bool:
        """Law 1: planned = written + dropped + failed."""
        return self.planned == self.written + self.dropped + self.failed


@dataclass(frozen=True, slots=True)
class SetStats:
    """A set in numbers; version and digest are None before its build has ended."""

    name: str
    version: int | None
    digest: str | None
    planned: int
    written: int
    dropped: int
    failed: int
    reasons: dict[str, int]
    hours: float
    stored_bytes: int
    splits: tuple[SplitStats, ...]

    def as_json(self) -> dict[str, Any]:
        """The same facts as JSON values."""
        return {**asdict(self), "set": self.name, "splits": [asdict(split) for split in self.splits]}

    def as_table(self) -> tuple[list[str], list[list[Any]]]:
        """Column names and rows: a column for every split."""
        rows: list[list[Any]] = [
            [kind, *(getattr(split, kind) for split in self.splits)]
            for kind in ("planned", "written", "dropped", "failed")
        ]
        rows += [[f"  {reason}", *(split.reasons.get(reason, 0) for split in self.splits)] for reason in self.reasons]
        rows += [
            ["shards", *(split.shards for split in self.splits)],
            ["classes", *(split.classes for split in self.splits)],
            ["hours", *(f"{split.hours:.2f}" for split in self.splits)],
            ["stored MB", *(f"{split.stored_bytes / 1e6:.1f}" for split in self.splits)],
            ["median seconds", *(split.durations_seconds.get("median", "") for split in self.splits)],
        ]
        return ["", *(split.split for split in self.splits)], rows


@dataclass(frozen=True, slots=True)
class SetSummary:
    """One line of the list of sets."""

    name: str
    version: int | None
    digest: str | None
    is_sealed: bool
    splits: dict[str, int]
    planned: int
    written: int
    hours: float


@contextlib.contextmanager
def opened(books: list[SetBooks]) -> Iterator[Any]:
    """A connection over the tables of some sets, for queries of ours."""
    connection = files.connect()
    try:
        load_books(connection, books)
        yield connection
    finally:
        connection.close()


def stats(workspace: Path, name: str) -> SetStats:
    """Count what a set holds, split by split, sealed or not.

    Raises:
        SetError: there is no such set, or its books are damaged.
    """
    book = find_books(workspace, [name])[0]
    with opened([book]) as connection:
        splits = tuple(
            _split(connection, split)
            for (split,) in connection.execute("SELECT DISTINCT split FROM clip ORDER BY ALL").fetchall()
        )
    reasons: dict[str, int] = {}
    for split in splits:
        for reason, count in split.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    seal = book.seal or {}
    return SetStats(
        name=name,
        version=seal.get("version"),
        digest=seal.get("digest"),
        planned=sum(split.planned for split in splits),
        written=sum(split.written for split in splits),
        dropped=sum(split.dropped for split in splits),
        failed=sum(split.failed for split in splits),
        reasons=dict(sorted(reasons.items())),
        hours=round(sum(split.hours for split in splits), 6),
        stored_bytes=sum(split.stored_bytes for split in splits),
        splits=splits,
    )


def _split(connection: Any, split: str) -> SplitStats:
    counts = connection.execute(
        f"""SELECT count(*), count(*) FILTER (outcome = 'written'), count(*) FILTER (outcome = 'dropped'),
                   count(*) FILTER (outcome = 'failed'), count(DISTINCT shard),
                   coalesce(sum({_SECONDS}) FILTER (outcome = 'written'), 0) / 3600,
                   coalesce(sum(stored_bytes) FILTER (outcome = 'written'), 0), coalesce(sum(source_bytes), 0)
            FROM clip WHERE split = ?""",
        [split],
    ).fetchone()
    classes = connection.execute(
        """SELECT count(DISTINCT label_raw) FROM annotation
           WHERE outcome = 'written' AND shard_split = ? AND label_raw IS NOT NULL""",
        [split],
    ).fetchone()[0]
    quantiles = connection.execute(
        f"""SELECT min(d), quantile_cont(d, 0.05), median(d), quantile_cont(d, 0.95), max(d)
            FROM (SELECT {_SECONDS} AS d FROM written WHERE split = ?) WHERE d IS NOT NULL""",
        [split],
    ).fetchone()
    names = ("min", "p5", "median", "p95", "max")
    return SplitStats(
        split=split,
        planned=counts[0],
        written=counts[1],
        dropped=counts[2],
        failed=counts[3],
        reasons=_counted(
            connection, "SELECT reason, count(*) FROM clip WHERE split = ? AND reason IS NOT NULL GROUP BY 1", split
        ),
        flags=_counted(
            connection,
            "SELECT flag, count(*) FROM (SELECT unnest(flags) AS flag FROM written WHERE split = ?) GROUP BY 1",
            split,
        ),
        encodings=_counted(
            connection,
            "SELECT encode_mode, count(*) FROM written WHERE split = ? AND encode_mode IS NOT NULL GROUP BY 1",
            split,
        ),
        shards=counts[4],
        classes=classes,
        hours=round(float(counts[5]), 6),
        stored_bytes=int(counts[6]),
        source_bytes=int(counts[7]),
        durations_seconds={}
        if quantiles[0] is None
        else {name: round(float(value), 3) for name, value in zip(names, quantiles, strict=True)},
    )


def _counted(connection: Any, query: str, split: str) -> dict[str, int]:
    return dict(sorted(connection.execute(query, [split]).fetchall()))


def list_sets(workspace: Path) -> list[SetSummary]:
    """Every set of the workspace with its main numbers, sorted by name.

    Raises:
        SetError: the books of a set are damaged.
    """
    books = find_books(workspace)
    with opened(books) as connection:
        rows = connection.execute(
            f"""SELECT set_name, split, count(*), count(*) FILTER (outcome = 'written'),
                       coalesce(sum({_SECONDS}) FILTER (outcome = 'written'), 0) / 3600
                FROM clip GROUP BY ALL ORDER BY ALL"""
        ).fetchall()
    found = []
    for book in books:
        mine = [row for row in rows if row[0] == book.name]
        seal = book.seal or {}
        found.append(
            SetSummary(
                name=book.name,
                version=seal.get("version"),
                digest=seal.get("digest"),
                is_sealed=book.seal is not None,
                splits={row[1]: row[3] for row in mine},
                planned=sum(row[2] for row in mine),
                written=sum(row[3] for row in mine),
                hours=round(sum(float(row[4]) for row in mine), 6),
            )
        )
    return found
