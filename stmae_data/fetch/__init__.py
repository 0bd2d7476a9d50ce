"""Bringing files here: the official parts of a release, the addresses of a list, YouTube ids. Read `fetch` first.

Whatever happens, every row of a list and every part ends in exactly one status in `raw/<name>/fetched.parquet`, and the same command goes
on where it was stopped. `build --from raw/<name>` turns what could not be fetched into ledger rows with their reason.
"""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stmae_data import __version__, files
from stmae_data.errors import Reason, SourceError, UsageError
from stmae_data.fetch.address import shown_url
from stmae_data.fetch.book import Book
from stmae_data.fetch.checks import media_only, no_page
from stmae_data.fetch.client import Client, Policy
from stmae_data.fetch.download import Expected
from stmae_data.fetch.lists import Wanted, by_host, read_lists
from stmae_data.fetch.official import Part, official_parts, unpack_tables
from stmae_data.fetch.request import LIST_POLICY, PARTS_POLICY, FetchReport, FetchRequest
from stmae_data.fetch.work import Item, Progress, Run
from stmae_data.fetch.youtube import INFO_COLUMNS, YouTube
from stmae_data.manifest import Manifest, is_remote, load_manifest
from stmae_data.sources.tables import TABLE_SUFFIXES

__all__ = [
    "Client",
    "FetchReport",
    "FetchRequest",
    "Policy",
    "YouTube",
    "fetch",
]


def fetch(
    request: FetchRequest,
    *,
    client: Client | None = None,
    youtube: YouTube | None = None,
    progress: Progress | None = None,
) -> FetchReport:
    """Fetch, or go on with a fetch that was stopped.

    Args:
        request: what to fetch.
        client: makes the exchanges; one of the request's policy unless given.
        youtube: fetches ids; one of the request's settings unless given.
        progress: told ("fetch", done, total).

    Raises:
        SourceError: a list that cannot be read, a release that may not be fetched, a missing program; ManifestError, UsageError;
        StorageError: the disk; Busy: another process fetches the same.
    """
    started = time.monotonic()
    unknown = sorted({each for each in request.retry_failed if each} - set(Reason))
    if unknown:
        raise UsageError(
            f"There is nothing to retry under {unknown[0]!r}; wanted codes such as {Reason.NET_4XX}, {Reason.HASH_MISMATCH}."
        )
    manifest, tables = _source(request)
    own = client or Client(request.policy(PARTS_POLICY if tables is None else LIST_POLICY))
    rows: Sequence[Part | Wanted]
    if tables is None:
        assert manifest is not None
        rows = official_parts(
            manifest,
            own,
            base_url=request.base_url,
            splits=request.splits or None,
            classes=request.classes or None,
            limit=request.limit,
            is_tables_only=request.is_tables_only,
        )
    else:
        _refuse_for_lists(request)
        rows = read_lists(tables)
    name = request.name or (manifest.name if manifest is not None else _plain_name(Path(request.source).stem))
    folder = request.workspace / "raw" / name
    items, rows = _share(rows, request)
    if not items:
        raise SourceError(f"There is nothing to fetch in {request.source}; it names no address.")
    if request.is_dry_run:
        book = Book.open(folder, request.job) if folder.is_dir() else Book(folder, request.job, {})
        return _report(name, book, rows, 0, started, None)
    with files.lock(folder / f"LOCK{request.job.suffix}", what=f"The fetch of {name}"):
        if request.job.count == 1:  # a job must not sweep away what others are writing
            for place in (folder, folder / ".partial", folder / "files", folder / "annotations"):
                files.sweep_temp(place)
        book = Book.open(folder, request.job)
        _note_how(request, folder, own.policy)
        todo = [each for each in items.values() if _is_open(each, book, request.retry_failed)]
        for each in todo:
            if book.outcome(each.key)["status"] == "fetched":
                del book.decided[each.key]  # its file is gone
        ids = [each for each in todo if each.video_id is not None]
        if ids and youtube is None:
            youtube = YouTube(
                request.youtube_program,
                per_hour=request.per_hour,
                max_bytes=own.policy.max_bytes,
                deadline_seconds=own.policy.deadline_seconds,
                cookies=request.cookies,
            )
        run = Run(folder, book, own, progress, len(items), len(items) - len(todo))
        try:
            run.addresses([each for each in todo if each.video_id is None], request.workers)
            wall = run.videos(ids, youtube) if youtube is not None else None
        finally:
            book.commit([_row(row, book) for row in rows])
        for row in rows:
            if isinstance(row, Part) and row.kind == "table" and book.has(row.key, row.file):
                unpack_tables(folder, row)
    return _report(name, book, rows, run.num_new, started, wall)


def _source(request: FetchRequest) -> tuple[Manifest | None, list[Path] | None]:
    """The manifest of a release, or the lists to read."""
    path = Path(request.source)
    if path.suffix[1:].casefold() in TABLE_SUFFIXES:
        if not path.is_file():
            raise SourceError(f"There is no list {path}; name a csv, txt, json, jsonl or parquet file, or a manifest.")
        return None, [path]
    manifest = load_manifest(request.source)
    if manifest.kind != "table":
        return manifest, None
    tables = [Path(each) for split in manifest.splits for each in split.annotations if not is_remote(each)]
    if not tables:
        raise SourceError(
            f"{manifest.name} names no list of addresses; give the list itself: stmae-data fetch LIST.csv"
        )
    return manifest, tables


def _refuse_for_lists(request: FetchRequest) -> None:
    for option, value in (
        ("--base-url", request.base_url),
        ("--classes", request.classes),
        ("--split", request.splits),
        ("--tables", request.is_tables_only),
    ):
        if value:
            raise UsageError(
                f"{option} chooses among the parts of a release and means nothing for a list; leave it out."
            )


def _plain_name(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", stem).lstrip("._-") or "list"


def _share(rows: Sequence[Part | Wanted], request: FetchRequest) -> tuple[dict[str, Item], list[Part | Wanted]]:
    """The distinct addresses of this job and the rows they belong to; any smaller limit is inside a larger one."""
    hashes: dict[str, set[str | None]] = defaultdict(set)
    items: dict[str, Item] = {}
    for row in rows:
        if isinstance(row, Part):
            items[row.key] = Item(row.key, row.url, row.file, row.expected, no_page)
        else:
            hashes[row.key].add(row.sha256)
            items.setdefault(row.key, Item(row.key, row.url or "", row.file, Expected(), media_only, row.video_id))
    for key, wanted in hashes.items():
        # A row without a hash takes any bytes, so a file is thrown away only when no row can want it.
        items[key].expected = Expected() if None in wanted else Expected(frozenset(each for each in wanted if each))
    keys = sorted(items)
    if request.limit is not None and hashes:
        keys = keys[: request.limit]
    ours = set(request.job.share(keys))
    if hashes:
        order = {url: at for at, url in enumerate(by_host(items[key].url for key in keys if key in ours))}
        chosen = sorted(ours, key=lambda key: order[items[key].url])
    else:
        chosen = [key for key in items if key in ours]
    return {key: items[key] for key in chosen}, [row for row in rows if row.key in ours]


def _is_open(item: Item, book: Book, retry: Iterable[str]) -> bool:
    """Whether an address is to be tried: not tried yet, gone from the disk, or failed in a way that may pass or was named."""
    known = book.decided.get(item.key)
    if known is None or known["status"] == "fetched":
        return not book.has(item.key, item.file)
    return known["reason"] in set(retry) or Reason(known["reason"]).is_retryable


def _note_how(request: FetchRequest, folder: Path, policy: Policy) -> None:
    """Say in `fetch.json` how the folder was filled; that private addresses were let through once is never forgotten."""
    path = folder / "fetch.json"
    before = files.read_json(path) if path.exists() else {}
    files.commit_json(
        path,
        {
            "schema_version": 1,
            "source": Path(request.source).name,
            "base_url": shown_url(request.base_url) if request.base_url else None,
            "allow_private": policy.allow_private or bool(before.get("allow_private")),
            "ports": sorted(policy.ports),
            "max_bytes": policy.max_bytes,
            "deadline_seconds": policy.deadline_seconds,
            "stmae_version": __version__,
        },
        point="fetch-note",
    )


def _row(row: Part | Wanted, book: Book) -> dict[str, Any]:
    """The book's row of a part or of a line of a list."""
    end = {**book.outcome(row.key), "file": row.file}
    if isinstance(row, Part):
        return {"kind": row.kind, "split": row.split, "url": shown_url(row.official_url), **end}
    if row.sha256 is not None and end["status"] == "fetched" and end["sha256"] != row.sha256:
        detail = "the bytes have another sha256 than this row expects"
        end |= {"status": "failed", "reason": str(Reason.HASH_MISMATCH), "detail": detail, "sha256": None}
    known: dict[str, Any] = {}
    if row.video_id is not None and end["status"] == "fetched":
        sidecar = (book.folder / row.file).with_suffix(".info.json")
        found = files.read_json(sidecar) if sidecar.is_file() else {}
        known = {name: found[name] for name in INFO_COLUMNS if name in found}
    kind = "youtube" if row.video_id is not None else "url"
    return {**known, **row.columns, "row_number": row.row_number, "kind": kind, "url": row.shown, **end}


def _report(
    name: str,
    book: Book,
    rows: Sequence[Part | Wanted],
    num_new: int,
    started: float,
    stopped: Reason | None,
) -> FetchReport:
    ends = [_row(row, book) for row in rows]
    statuses = Counter(end["status"] for end in ends)
    counts = {"planned": len(ends), **{each: statuses[each] for each in ("fetched", "failed", "dropped", "pending")}}
    reasons = Counter(str(end["reason"]) for end in ends if end["reason"])
    known = [book.outcome(key) for key in {row.key for row in rows}]
    num_bytes = sum(each["bytes"] for each in known if each["status"] == "fetched")
    return FetchReport(
        name,
        book.folder,
        isinstance(rows[0], Part),
        counts,
        dict(sorted(reasons.items())),
        num_new,
        num_bytes,
        time.monotonic() - started,
        stopped,
    )
