"""Metadata files beside web videos, as yt-dlp writes them. Their text is untrusted: capped, cleaned, and never more than data."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

__all__ = [
    "MAX_SIDECAR_BYTES",
    "Sidecar",
    "hashtags",
    "normalise_tag",
    "parse_sidecar",
    "read_sidecar",
    "safe_url",
    "sidecar_of",
]

MAX_SIDECAR_BYTES = 4 << 20
_MAX_TAGS = 500
_YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_PLATFORM = re.compile(r"[a-z0-9_]{1,32}")
_PLATFORM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Not inside a word, a path or an HTML entity: `a#b`, `page/#part` and `&#39;` are no hashtags.
_HASHTAG = re.compile(r"(?<![\w/&])#(\w+)")


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What a metadata file says, in the columns of the ledger; only what it does say is there."""

    web: dict[str, Any] = field(default_factory=dict)
    platform: str | None = None
    platform_id: str | None = None
    is_bad: bool = False
    """The file is broken, too deep, too big, not an object or holds NaN: nothing in it is used."""


def read_sidecar(path: bytes) -> Sidecar:
    """Read one metadata file; a bad one is said to be bad and never stops anything."""
    try:
        return parse_sidecar(_read_guarded(path))
    except (OSError, ValueError):
        return Sidecar(is_bad=True)


def parse_sidecar(data: bytes) -> Sidecar:
    """What the bytes of a metadata file say."""
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return Sidecar(is_bad=True)
    if not isinstance(value, dict):
        return Sidecar(is_bad=True)
    found = sidecar_of(value)
    return replace(found, web={**found.web, "info_sha256": hashlib.sha256(data).hexdigest()})


def sidecar_of(value: dict[str, Any]) -> Sidecar:
    """The columns of an info dict, whoever wrote it."""
    platform, platform_id = _platform(value)
    web = {name: found for name, read in _COLUMNS.items() if (found := read(value)) is not None}
    if platform == "youtube" and platform_id is not None:
        # A watch page is named by its query, which is not kept; the short form has none.
        web["url"] = f"https://youtu.be/{platform_id}"
    if tags := list(_tags(value, web)):
        web["tags"] = tags
    if "license" in web:
        web["license_origin"] = "sidecar"
    return Sidecar(web, platform, platform_id)


def _read_guarded(path: bytes) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_SIDECAR_BYTES:
            raise ValueError("not a regular file of a sensible size")
        return stream.read(MAX_SIDECAR_BYTES)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def safe_url(text: str) -> str | None:
    """An http(s) address without user, password, query and fragment; None for anything else."""
    if len(text) > 2048 or any(ord(each) < 33 or ord(each) == 127 for each in text):
        return None
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not host:
        return None
    host = f"[{host}]" if ":" in host else host
    return urlunsplit((parts.scheme, f"{host}:{port}" if port else host, parts.path, "", ""))


def normalise_tag(text: str) -> str:
    """One spelling of a tag: NFKC, casefold, no `#`, single spaces, no control or format signs."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    visible = "".join(each if unicodedata.category(each)[0] != "C" else " " for each in folded)
    return " ".join(visible.replace("#", " ").split())[:100].strip()


def hashtags(text: str) -> Iterator[str]:
    """Hashtags of a text in order, normalised; numbers alone are none."""
    for found in _HASHTAG.findall(unicodedata.normalize("NFKC", text)):
        if not found.isdecimal() and (tag := normalise_tag(found)):
            yield tag


def _tags(value: dict[str, Any], web: dict[str, Any]) -> Iterator[dict[str, str]]:
    given = value.get("tags")
    listed = (
        [normalise_tag(each[:1000]) for each in given[:_MAX_TAGS] if isinstance(each, str)]
        if isinstance(given, list)
        else []
    )
    seen: set[tuple[str, str]] = set()
    for origin, tags in (
        ("tag", listed),
        ("title", hashtags(web.get("title", ""))),
        ("description", hashtags(web.get("description", ""))),
    ):
        for tag in tags:
            if tag and (tag, origin) not in seen and len(seen) < _MAX_TAGS:
                seen.add((tag, origin))
                yield {"tag": tag, "origin": origin}


def _platform(value: dict[str, Any]) -> tuple[str | None, str | None]:
    extractor = value.get("extractor_key") or value.get("extractor")
    video_id = value.get("id")
    if not isinstance(extractor, str) or not isinstance(video_id, str):
        return None, None
    name = extractor.split(":")[0].casefold()
    pattern = _YOUTUBE_ID if name == "youtube" else _PLATFORM_ID
    if not _PLATFORM.fullmatch(name) or not pattern.fullmatch(video_id):
        return None, None
    return name, video_id


def _text(*keys: str, limit: int) -> Callable[[dict[str, Any]], str | None]:
    def read(value: dict[str, Any]) -> str | None:
        for key in keys:
            found = value.get(key)
            if isinstance(found, int) and not isinstance(found, bool) and key.endswith("_id"):
                found = str(found)
            if isinstance(found, str) and found.strip():
                # Half a surrogate pair and NUL are legal JSON but no text a table can hold.
                clean = found[:limit].encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
                return clean.strip()
        return None

    return read


def _count(key: str, limit: int = 2**63 - 1) -> Callable[[dict[str, Any]], int | None]:
    def read(value: dict[str, Any]) -> int | None:
        found = value.get(key)
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= limit else None

    return read


def _url(value: dict[str, Any]) -> str | None:
    for key in ("webpage_url", "original_url", "url"):
        found = value.get(key)
        if isinstance(found, str) and (url := safe_url(found)) is not None:
            return url
    return None


def _upload_date(value: dict[str, Any]) -> str | None:
    found = value.get("upload_date")
    if not isinstance(found, str) or not re.fullmatch(r"\d{4}-?\d{2}-?\d{2}", found, re.ASCII):
        return None
    try:
        return datetime.date.fromisoformat(found).isoformat()
    except ValueError:
        return None


def _duration(value: dict[str, Any]) -> float | None:
    found = value.get("duration")
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if 0 <= found < 1e9 and math.isfinite(found) else None


_COLUMNS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "url": _url,
    "title": _text("title", "fulltitle", limit=1000),
    "description": _text("description", limit=10_000),
    "uploader_id": _text("uploader_id", "uploader", limit=200),
    "channel_id": _text("channel_id", limit=200),
    "upload_date": _upload_date,
    "listed_duration_seconds": _duration,
    "age_limit": _count("age_limit", 200),
    "availability": _text("availability", limit=64),
    "language": _text("language", limit=64),
    "view_count": _count("view_count"),
    "like_count": _count("like_count"),
    "license": _text("license", limit=200),
}
