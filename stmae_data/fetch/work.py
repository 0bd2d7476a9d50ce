"""One run of a fetch: every open address is brought to its end, and every end is written down at once."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.errors import ClipRejected, Reason, StmaeDataError
from stmae_data.fetch.book import Book
from stmae_data.fetch.client import Client, Stopped
from stmae_data.fetch.download import Expected, Fetched, Sniff, download
from stmae_data.fetch.pool import run_threads
from stmae_data.fetch.youtube import WALLS, YouTube

__all__ = ["Item", "Progress", "Run"]

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Item:
    """One address to end in one status; several rows of a list may share it."""

    key: str
    url: str
    file: str
    expected: Expected
    sniff: Sniff
    video_id: str | None = None


@dataclass(slots=True)
class Run:
    """One run of a fetch: does what is open and writes every end into the book at once."""

    folder: Path
    book: Book
    client: Client
    progress: Progress | None
    total: int
    done: int
    num_new: int = 0
    partial: Path = field(init=False)

    def __post_init__(self) -> None:
        self.partial = self.folder / ".partial"
        self._tick(0)

    def addresses(self, items: Sequence[Item], workers: int) -> None:
        """Fetch addresses in threads."""
        for item, outcome in run_threads(self._fetch, items, workers=workers, stop=self.client.stop):
            self._end(item, outcome)

    def videos(self, items: Sequence[Item], youtube: YouTube) -> Reason | None:
        """Fetch YouTube ids one by one; the reason the line was stopped for, None when it was not."""
        shutil.rmtree(self._own, ignore_errors=True)  # a killed run may have left a copy of the cookies
        for item in items:
            outcome = self._fetch_video(item, youtube)
            self._end(item, outcome)
            if outcome["reason"] in WALLS:
                return Reason(outcome["reason"])
        return None

    @property
    def _own(self) -> Path:
        """Where children work, apart from those of other jobs."""
        return self.partial / f"youtube{self.book.job.suffix}"

    def _end(self, item: Item, outcome: Mapping[str, Any]) -> None:
        self.book.decide(item.key, outcome)
        self.num_new += outcome["status"] == "fetched"
        self._tick(1)

    def _tick(self, number: int) -> None:
        self.done += number
        if self.progress is not None:
            self.progress("fetch", self.done, self.total)

    def _fetch(self, item: Item) -> dict[str, Any]:
        def work() -> Fetched:
            return download(
                self.client,
                item.url,
                self.folder / item.file,
                partial=self.partial,
                expected=item.expected,
                sniff=item.sniff,
            )

        return _ended(item, work)

    def _fetch_video(self, item: Item, youtube: YouTube) -> dict[str, Any]:
        def work() -> Fetched:
            target = self.folder / item.file
            info, sha256 = youtube.fetch(item.video_id or "", target, partial=self._own)
            if item.expected.sha256 and sha256 not in item.expected.sha256:
                files.remove_file(target, point="fetch-mismatch")
                raise ClipRejected(Reason.HASH_MISMATCH, "the bytes have another sha256 than was expected")
            own = {"extractor": "youtube", "id": item.video_id, "webpage_url": item.url}
            files.commit_json(target.with_suffix(".info.json"), {**info, **own}, point="fetch-info")
            now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
            return Fetched(target.stat().st_size, sha256, item.url, "", now, 1)

        return _ended(item, work)


def _ended(item: Item, work: Callable[[], Fetched]) -> dict[str, Any]:
    """The one end of an address, as the book has it."""
    try:
        made = work()
    except ClipRejected as rejected:
        return _rejected(item, rejected.reason, rejected.detail)
    except (StmaeDataError, Stopped):
        raise
    except Exception as error:  # an unforeseen fault is a row and a non-zero exit, never a lost address
        # Its text may hold the address with all its secrets, so only its kind is told.
        return _rejected(item, Reason.INTERNAL_ERROR, f"{uuid.uuid4().hex[:8]} {type(error).__name__}")
    return {
        "status": "fetched",
        "reason": None,
        "file": item.file,
        "sha256": made.sha256,
        "bytes": made.num_bytes,
        "resolved_url": made.resolved_url,
        "final_ip": made.final_ip or None,
        "fetched_at": made.fetched_at,
        "attempts": made.attempts,
    }


def _rejected(item: Item, reason: Reason, detail: str) -> dict[str, Any]:
    return {"status": reason.outcome, "reason": str(reason), "detail": detail[:200] or None, "file": item.file}
