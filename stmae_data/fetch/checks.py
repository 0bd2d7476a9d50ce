"""What the first bytes and the headers of an answer decide."""

from __future__ import annotations

from http.client import HTTPMessage

from stmae_data.errors import ClipRejected, Reason
from stmae_data.media.sniff import sniff

__all__ = ["is_opted_out", "media_only", "no_page"]

_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body")
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Directives of X-Robots-Tag with a colon in them; any other word before a colon names a robot."""


def no_page(head: bytes) -> None:
    """Refuse a body without bytes, and a web page in place of a file.

    Raises:
        ClipRejected: `empty` or `not_media`.
    """
    if not head:
        raise ClipRejected(Reason.EMPTY, "the body has no bytes")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:15].lower().startswith(_PAGES):
        raise ClipRejected(Reason.NOT_MEDIA, "a web page in place of a file")


def media_only(head: bytes) -> None:
    """Refuse first bytes that are surely no video or picture: pages, playlists, sound, next to nothing.

    Raises:
        ClipRejected: `empty`, `not_media`, `unsafe_playlist` or `no_video`.
    """
    no_page(head)
    sniff(head, len(head))


def is_opted_out(headers: HTTPMessage) -> bool:
    """Whether X-Robots-Tag says `noai` (or `noimageai`), to everybody or to us by name."""
    for value in headers.get_all("X-Robots-Tag", []):
        agent = ""
        for each in value.casefold().split(","):
            name, colon, rest = (part.strip() for part in each.partition(":"))
            if colon and name not in _VALUED:
                agent, name = name, rest
            if agent in ("", "stmae") and name in ("noai", "noimageai"):
                return True
    return False
