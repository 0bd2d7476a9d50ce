"""What to fetch, and what a fetch came to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stmae_data.errors import Reason
from stmae_data.fetch.client import Policy
from stmae_data.records import Job

__all__ = ["LIST_POLICY", "PARTS_POLICY", "FetchReport", "FetchRequest"]

LIST_POLICY = Policy()
PARTS_POLICY = Policy(max_bytes=64 << 30, deadline_seconds=24 * 3600.0, read_timeout_seconds=60.0)
"""Archives of a release take hours on a slow line; a stalled one is noticed by the read timeout all the same."""


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """What to fetch. `source` is a manifest (name or TOML) or a list (csv, tsv, txt, json, jsonl, parquet)."""

    workspace: Path
    source: str
    name: str | None = None
    base_url: str | None = None
    splits: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    limit: int | None = None
    job: Job = field(default_factory=Job)
    workers: int = 4
    max_bytes: int | None = None
    deadline_seconds: float | None = None
    ports: tuple[int, ...] = ()
    allow_private: bool = False
    is_tables_only: bool = False
    retry_failed: tuple[str, ...] = ()
    """Reasons of earlier failures to take up again beside those that may pass by themselves."""
    cookies: Path | None = None
    per_hour: float = 60.0
    youtube_program: tuple[str, ...] = ()
    is_dry_run: bool = False

    def policy(self, base: Policy) -> Policy:
        """The policy of a kind of source, with what was asked for."""
        return dataclasses.replace(
            base,
            max_bytes=self.max_bytes or base.max_bytes,
            deadline_seconds=self.deadline_seconds or base.deadline_seconds,
            ports=frozenset(self.ports),
            allow_private=self.allow_private,
        )


@dataclass(frozen=True, slots=True)
class FetchReport:
    """What a fetch came to. Counts are of rows: planned = fetched + failed + dropped + pending."""

    name: str
    folder: Path
    is_official: bool
    counts: dict[str, int]
    reasons: dict[str, int]
    num_new: int
    """Of the fetched, how many came in this run."""
    num_bytes: int
    seconds: float
    stopped: Reason | None = None
    """The wall the line was stopped at."""
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """{"name", "folder", "planned", "fetched", "new", "failed", "dropped", "pending", "reasons", "bytes", "seconds", "stopped"}."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            **self.counts,
            "new": self.num_new,
            "reasons": self.reasons,
            "bytes": self.num_bytes,
            "seconds": round(self.seconds, 3),
            "stopped": str(self.stopped) if self.stopped else None,
        }

    def exit_code(self, *, is_strict: bool) -> int:
        """75 at a wall (try again later), 1 after an internal error, 3 when a part of a release, more than half or (strict) any is missing."""
        missing = self.counts["failed"] + self.counts["dropped"]
        if self.stopped is not None:
            return 75
        if self.reasons.get(Reason.INTERNAL_ERROR):
            return 1
        return 3 if missing > (0 if is_strict or self.is_official else self.counts["planned"] / 2) else 0
