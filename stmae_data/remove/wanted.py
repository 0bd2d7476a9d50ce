"""What a takedown names: ids, addresses, uploaders, hashes; on the command line, or in files that list them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from stmae_data.errors import SourceError, UsageError

__all__ = ["Wanted", "place_of", "read_wanted"]

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to go: clip or platform ids, addresses, uploaders or channels, sha256 of source or stored bytes."""

    ids: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    uploaders: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()

    def pairs(self) -> list[tuple[str, str]]:
        """(kind, value) of everything named, sorted, each once."""
        kinds = (("id", self.ids), ("url", self.urls), ("uploader", self.uploaders), ("hash", self.hashes))
        return sorted({(kind, value) for kind, values in kinds for value in values})


def read_wanted(
    *, ids: Iterable[str] = (), urls: Iterable[str] = (), uploaders: Iterable[str] = (), hashes: Iterable[str] = ()
) -> Wanted:
    """Check what is named; a file among ids, addresses or hashes stands for its lines.

    Raises:
        UsageError: something that is none of its kind, or nothing at all; SourceError: a file that cannot be read.
    """
    found = Wanted(
        ids=tuple(_each(ids, lambda text: _ID.fullmatch(text) is not None, "a clip or platform id")),
        urls=tuple(_each(urls, lambda text: "://" in text, "an address as https://…")),
        uploaders=tuple(uploaders),
        hashes=tuple(
            text.casefold()
            for text in _each(
                hashes, lambda text: _HASH.fullmatch(text.casefold()) is not None, "a sha256 of 64 hex digits"
            )
        ),
    )
    if not found.pairs():
        raise UsageError("Nothing is named; say what is to go with --ids, --urls, --uploader or --hashes.")
    return found


def _each(texts: Iterable[str], is_one: Callable[[str], bool], what: str) -> Iterable[str]:
    for text in texts:
        if is_one(text):
            yield text
            continue
        path = Path(text)
        if not path.is_file():
            raise UsageError(f"{text!r:.200} is neither {what} nor a file that lists some.")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"{path} cannot be read as lines of text ({error}); save it as UTF-8.") from error
        for number, line in enumerate(lines, start=1):
            if not (line := line.strip()):
                continue
            if not is_one(line):
                raise UsageError(f"Line {number} of {path} is {line!r:.120}, wanted {what}.")
            yield line


def place_of(url: str) -> tuple[str | None, str | None]:
    """(host and path as the query spells them, YouTube id) of an address."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").casefold(), parts.port
    except ValueError as error:
        raise UsageError(f"{url!r:.200} is no address ({error}); wanted https://…") from error
    if host.removeprefix("www.").removeprefix("m.") in ("youtube.com", "youtube-nocookie.com"):
        first = parts.path.strip("/").split("/")
        video = parse_qs(parts.query).get("v", [None])[0] if first[0] == "watch" else first[-1]
        return None, video
    if host == "youtu.be":
        return None, parts.path.strip("/")
    shown = host if port in (None, 80, 443) else f"{host}:{port}"
    return shown + parts.path.rstrip("/"), None
