"""What a fetch remembers: a row for each line of a list or part of a release, in `fetched.parquet`, and a log that survives a kill.

`raw/<name>/fetched.parquet` (or `fetched-2-of-4.parquet` of a job) is what `build` reads; `fetched.jsonl` holds what was decided since.
Neither holds a query string, a user or a password: an address is told apart by its hash.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.errors import SetError, SourceError
from stmae_data.records import Job
from stmae_data.sources.listed import fetched_books, fetched_name

__all__ = ["COLUMNS", "STATUSES", "Book", "url_key"]

STATUSES = ("fetched", "failed", "dropped", "pending")
"""`dropped`: a rule said no (too large, opted out); `pending`: not tried, as when a fetch was stopped."""

COLUMNS: dict[str, str] = {
    "row_number": "BIGINT",
    "kind": "VARCHAR",
    "split": "VARCHAR",
    "url": "VARCHAR",
    "url_key": "VARCHAR",
    "status": "VARCHAR",
    "reason": "VARCHAR",
    "detail": "VARCHAR",
    "file": "VARCHAR",
    "sha256": "VARCHAR",
    "bytes": "BIGINT",
    "resolved_url": "VARCHAR",
    "final_ip": "VARCHAR",
    "fetched_at": "VARCHAR",
    "attempts": "INTEGER",
}
"""Columns of ours; those of the list stand behind them, one that would take a name of ours as `listed_<name>`."""

_DECIDED = (
    "status",
    "reason",
    "detail",
    "file",
    "sha256",
    "bytes",
    "resolved_url",
    "final_ip",
    "fetched_at",
    "attempts",
)


def url_key(url: str) -> str:
    """What an address goes by in the book: 32 hex of its hash."""
    return fetched_name(url)[:32]


@dataclass(slots=True)
class Book:
    """The memory of one fetch into one folder."""

    folder: Path
    job: Job
    decided: dict[str, dict[str, Any]]
    """What is known by `url_key`, from the books of all jobs."""
    own: set[str] = field(default_factory=set)
    """Keys this run's own files know: what it must not forget."""

    @classmethod
    def open(cls, folder: Path, job: Job) -> Book:
        """Read what earlier runs decided, whichever job they were.

        Raises:
            SourceError: a book is damaged.
        """
        decided: dict[str, dict[str, Any]] = {}
        own: set[str] = set()
        for path in fetched_books(folder):
            names = ", ".join(("url_key", *_DECIDED))
            try:
                known = files.read_table(path, f"SELECT {names} FROM book WHERE status <> 'pending'")
            except SetError as error:
                raise SourceError(f"{path} is damaged; remove it, then run the same command again.") from error
            for row in known:
                _keep_better(decided, row)
                own |= {row["url_key"]} if path.stem == "fetched" + job.suffix or job.count == 1 else set()
        for log in sorted(folder.glob("fetched*.jsonl")):
            for line in log.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # a kill may leave half a line
                    decided_later = json.loads(line)
                    key = str(decided_later["url_key"])
                    decided[key] = {**dict.fromkeys(_DECIDED), **decided_later}
                    own |= {key} if log.stem == "fetched" + job.suffix or job.count == 1 else set()
        return cls(folder, job, decided, own)

    @property
    def path(self) -> Path:
        """The table of this run."""
        return self.folder / f"fetched{self.job.suffix}.parquet"

    @property
    def log(self) -> Path:
        """What was decided since the table was written."""
        return self.folder / f"fetched{self.job.suffix}.jsonl"

    def has(self, key: str, name: str) -> bool:
        """Whether the file of an address was fetched and is still there in its full size."""
        known = self.decided.get(key)
        if known is None or known["status"] != "fetched" or known["file"] != name:
            return False
        path = self.folder / name
        return path.is_file() and not path.is_symlink() and path.stat().st_size == known["bytes"]

    def decide(self, key: str, outcome: Mapping[str, Any]) -> None:
        """Remember the end of one address, at once."""
        row = {"url_key": key, **{name: outcome.get(name) for name in _DECIDED}}
        self.decided[key] = row
        files.append_line(self.log, row)

    def outcome(self, key: str) -> dict[str, Any]:
        """The end of one address; `pending` when it was not tried."""
        return self.decided.get(key) or {**dict.fromkeys(_DECIDED), "url_key": key, "status": "pending"}

    def commit(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the table of this run; the whole takes the place of the jobs' own. What it does not list stays in the log."""
        extra = {name: None for row in rows for name in row if name not in COLUMNS}
        columns = {**COLUMNS, **{name: _kind(row.get(name) for row in rows) for name in extra}}
        files.commit_table(self.path, [_plain(row, columns) for row in rows], columns, point="fetched")
        listed = {row["url_key"] for row in rows}
        left = [self.decided[key] for key in sorted(self.own - listed) if key in self.decided]
        if left:
            lines = "".join(json.dumps(each, sort_keys=True, default=str) + "\n" for each in left)
            files.commit_bytes(self.log, lines.encode(), point="fetched-log")
        spent = [] if left else [self.log]
        if self.job.count == 1:
            spent += [each for each in _books_and_logs(self.folder) if each not in (self.path, self.log)]
        for path in spent:
            if path.exists():
                files.remove_file(path, point="fetched-log")


def _books_and_logs(folder: Path) -> list[Path]:
    return [*fetched_books(folder), *folder.glob("fetched*.jsonl")]


def _keep_better(decided: dict[str, dict[str, Any]], row: dict[str, Any]) -> None:
    """Of two ends the fetched one counts, else the one read later."""
    known = decided.get(row["url_key"])
    if known is None or known["status"] != "fetched" or row["status"] == "fetched":
        decided[row["url_key"]] = row


def _kind(values: Iterable[Any]) -> str:
    found = [value for value in values if value is not None]
    if found and all(isinstance(value, bool) for value in found):
        return "BOOLEAN"
    if found and all(isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 for value in found):
        return "BIGINT"
    if found and all(isinstance(value, int | float) and not isinstance(value, bool) for value in found):
        return "DOUBLE"
    if found and all(isinstance(value, list) and all(isinstance(each, str) for each in value) for value in found):
        return "VARCHAR[]"
    return "VARCHAR"


def _plain(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Values as their columns hold them: what has no kind of its own is text, what is not a number is nothing."""
    plain: dict[str, Any] = {}
    for name, kind in columns.items():
        value = row.get(name)
        if isinstance(value, float) and value != value:
            value = None
        elif kind == "VARCHAR" and value is not None and not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False, default=str)
        if isinstance(value, str):
            value = value.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
        plain[name] = value
    return plain
