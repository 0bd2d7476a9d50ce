"""What a list asks for: addresses and YouTube ids out of tables with any further columns, each row to end in exactly one status."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from stmae_data.errors import SourceError
from stmae_data.fetch.book import COLUMNS, url_key
from stmae_data.manifest import is_remote
from stmae_data.sources.listed import PATH_COLUMNS, URL_COLUMNS, fetched_name, read_records
from stmae_data.sources.sidecar import safe_url

__all__ = ["FILES", "VIDEO_ID", "Wanted", "by_host", "read_lists", "watch_url"]

FILES = "files"
"""Folder below `raw/<name>` for what lists bring."""
VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_ID_COLUMNS = ("youtube_id", "ytid", "youtubeid", "yt_id", "video_id", "videoid")
_YOUTUBE = re.compile(r"((www|m|music)\.)?(youtube\.com|youtube-nocookie\.com)|youtu\.be")
_HASH = re.compile(r"[0-9a-f]{64}")
_MAX_COLUMNS = 200
_OURS = {*COLUMNS, *PATH_COLUMNS, *URL_COLUMNS, "id", "extractor", "extractor_key"} - {"split"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """One row of a list. `url` is None for a row that names no address at all."""

    row_number: int
    url: str | None
    video_id: str | None
    sha256: str | None
    columns: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What the address goes by in the book."""
        return url_key(self.url or "")

    @property
    def file(self) -> str:
        """Where the file will stand, below `raw/<name>`; the same at every run, whatever comes."""
        return f"{FILES}/{self.video_id}.mp4" if self.video_id else f"{FILES}/{fetched_name(self.url or '')}"

    @property
    def shown(self) -> str | None:
        """The address without user, password and query."""
        return safe_url(self.url or "")


def watch_url(video_id: str) -> str:
    """The address an id stands for in the book: without a query, so that it can be shown."""
    return f"https://youtu.be/{video_id}"


def read_lists(tables: Sequence[Path]) -> list[Wanted]:
    """All rows of lists: csv, tsv, json, jsonl, parquet, or txt with an address or YouTube id in each line.

    An address stands in a column `url` (or `link`, `video_url`, …), an id in `youtube_id` (or `ytid`, `video_id`, …); `sha256` is what
    the bytes must be. Every other column travels with the row.

    Raises:
        SourceError: a table cannot be read, or has neither such column.
    """
    wanted: list[Wanted] = []
    for table in tables:
        records = read_records(table)
        if not records:
            continue
        known = {name for record in records[:1000] for name in record}
        if not known & {*URL_COLUMNS, *PATH_COLUMNS, *_ID_COLUMNS}:
            raise SourceError(
                f"The list {table} names no addresses: found the columns {', '.join(sorted(known))}, wanted url or youtube_id; rename the column that holds them."
            )
        wanted += [_wanted(record, number) for number, record in enumerate(records, start=len(wanted) + 1)]
    return wanted


def _wanted(record: Mapping[str, Any], number: int) -> Wanted:
    used: set[str] = set()
    url = video_id = None
    for name in (*URL_COLUMNS, *PATH_COLUMNS):
        text = _text(record, name)
        if text is not None and is_remote(text.casefold()):
            url, video_id = text, _id_of_page(text)
            used.add(name)
            break
    for name in (*_ID_COLUMNS, "path"):
        text = _text(record, name)
        if url is None and text is not None and VIDEO_ID.fullmatch(text):
            video_id = text
            used.add(name)
            break
    if video_id is not None:
        url = watch_url(video_id)
    sha256 = (_text(record, "sha256") or "").casefold()
    used.add("sha256")
    columns = _columns(record, used)
    if video_id is not None:
        columns |= {"extractor": "youtube", "id": video_id}
    return Wanted(number, url, video_id, sha256 if _HASH.fullmatch(sha256) else None, columns)


def _id_of_page(url: str) -> str | None:
    """The id of a YouTube page; None for any other address."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").casefold()
    except ValueError:
        return None
    if not _YOUTUBE.fullmatch(host):
        return None
    folders = [each for each in parts.path.split("/") if each]
    if host == "youtu.be":
        found = folders[:1]
    elif folders[:1] == ["watch"]:
        found = parse_qs(parts.query).get("v", [])[:1]
    else:
        found = folders[1:2] if folders[:1] in (["shorts"], ["embed"], ["v"], ["live"]) else []
    return found[0] if found and VIDEO_ID.fullmatch(found[0]) else None


def _columns(record: Mapping[str, Any], used: set[str]) -> dict[str, Any]:
    """What else a row says; addresses in it lose what may be secret."""
    columns: dict[str, Any] = {}
    for name, value in record.items():
        if name in used or value in (None, "") or len(columns) >= _MAX_COLUMNS:
            continue
        clean = re.sub(r"[^\w-]", "_", name)[:60] or "_"
        if clean in _OURS:
            clean = f"listed_{clean}"
        columns.setdefault(clean, _without_secrets(value))
    return columns


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str) and is_remote(value.strip().casefold()):
        return safe_url(value.strip())
    if isinstance(value, list | tuple):
        return [_without_secrets(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _without_secrets(each) for name, each in value.items()}
    return value


def _text(record: Mapping[str, Any], name: str) -> str | None:
    value = record.get(name)
    return value.strip() if isinstance(value, str) and value.strip() else None


def by_host(urls: Iterable[str]) -> list[str]:
    """The same addresses, hosts taking turns, so that threads do not queue before one of them."""
    hosts: dict[str, list[str]] = defaultdict(list)
    for url in urls:
        try:
            host = urlsplit(url).netloc.rpartition("@")[2].casefold()
        except ValueError:
            host = ""
        hosts[host].append(url)
    turns: list[tuple[int, int, str]] = [
        (turn, number, url) for number, host in enumerate(hosts.values()) for turn, url in enumerate(host)
    ]
    return [url for _, _, url in sorted(turns, key=lambda each: each[:2])]
