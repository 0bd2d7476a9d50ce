"""The book of a workspace's takedowns, `<workspace>/removed.parquet`: what no set of it may take in again.

It holds what was named (ids, addresses, uploaders, hashes) and the clip ids and bytes that were found by it, for every set or for those
the takedown was asked of. Builds read it beside the tombstones of their own set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stmae_data import files
from stmae_data.errors import UsageError
from stmae_data.remove.match import Hit
from stmae_data.remove.wanted import Wanted, place_of

__all__ = ["Takedowns", "note_takedown", "read_takedowns"]

_COLUMNS: Final = {
    "kind": "VARCHAR",
    "value": "VARCHAR",
    "start_ms": "BIGINT",
    "end_ms": "BIGINT",
    "set_name": "VARCHAR",
    "reason": "VARCHAR",
    "removed_at": "VARCHAR",
}
_KEY: Final = ("kind", "value", "start_ms", "end_ms", "set_name")
_WEB_ID: Final = re.compile(r"web_[0-9a-f]{32}")

Piece = tuple[str, int | None, int | None]
"""sha256 of source bytes, with the interval where a piece of them is meant."""


@dataclass(frozen=True, slots=True)
class Takedowns:
    """What a set must not take in, each with the reason given: (kind, name) of kinds id, uploader, youtube and place; pieces of sources."""

    names: Mapping[tuple[str, str], str]
    pieces: Mapping[Piece, str]

    def reason_of_row(self, clip_id: str | None, told: Mapping[str, Any]) -> str | None:
        """Why a row must stay out, by what it is called; `told` holds columns of the plan, as far as they are known."""
        if not self.names:
            return None
        return next((self.names[name] for name in _names_of(clip_id, told) if name in self.names), None)


def _names_of(clip_id: str | None, told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    ids = [clip_id, told.get("platform_id"), told.get("parent_clip_id")]
    if clip_id is not None and (piece_of := _WEB_ID.match(clip_id)) is not None:
        ids.append(piece_of[0])
    yield from (("id", each) for each in ids if each is not None)
    yield from (("uploader", each) for name in ("uploader_id", "channel_id") if (each := told.get(name)) is not None)
    if told.get("platform") == "youtube" and told.get("platform_id") is not None:
        yield "youtube", told["platform_id"]
    for name in ("url", "resolved_url", "source_uri"):
        place = _place(told.get(name))
        if place is not None:
            yield "place", place


def _place(address: str | None) -> str | None:
    if address is None or "://" not in address:
        return None
    try:
        return place_of(address)[0]
    except UsageError:  # an address that a source gave is no mistake of the operator
        return None


def note_takedown(
    workspace: Path, wanted: Wanted, hits: Iterable[Hit], *, reason: str, sets: Sequence[str], removed_at: str | None
) -> None:
    """Write down what a takedown named and found, for `sets`, or for every set where there are none; what stands there already stays.

    The caller holds the lock of removals.

    Raises:
        SetError: the book is damaged; StorageError: the disk.
    """
    named: dict[tuple[str, str, int | None, int | None], None] = dict.fromkeys(
        (kind, value, None, None) for kind, value in wanted.pairs()
    )
    for hit in hits:
        if hit.clip_id is not None:
            named["id", hit.clip_id, None, None] = None
        if hit.stored_sha256 is not None:
            named["hash", hit.stored_sha256, None, None] = None
        if hit.source_sha256 is not None:
            named["hash", hit.source_sha256, hit.start_ms, hit.end_ms] = None
    path = workspace / "removed.parquet"
    before = files.read_table(path) if path.is_file() else []
    rows = {tuple(row[name] for name in _KEY): row for row in before}
    for set_name in sets or (None,):
        for key in named:
            facts = (*key, set_name, reason, removed_at)
            rows.setdefault((*key, set_name), dict(zip(_COLUMNS, facts, strict=True)))
    if len(rows) > len(before):
        files.commit_table(path, rows.values(), _COLUMNS, point="takedown", order_by=", ".join(_KEY))


def read_takedowns(workspace: Path, set_name: str) -> Takedowns:
    """What a set of this name must not take in; empty where nothing was ever taken down.

    Raises:
        SetError: the book is damaged.
    """
    path = workspace / "removed.parquet"
    query = "SELECT * FROM book WHERE set_name IS NULL OR set_name = ?"
    names: dict[tuple[str, str], str] = {}
    pieces: dict[Piece, str] = {}
    for row in files.read_table(path, query, [set_name]) if path.is_file() else ():
        kind, value, reason = row["kind"], row["value"], row["reason"]
        if kind == "hash":
            pieces[value, row["start_ms"], row["end_ms"]] = reason
        elif kind != "url":
            names[kind, value] = reason
        else:
            place, youtube = place_of(value)
            if youtube is not None:
                names["youtube", youtube] = reason
            # Sets keep addresses without their query; where it tells films apart, the clip ids and bytes that were found stand for them.
            elif place is not None and "?" not in value:
                names["place", place] = reason
    return Takedowns(names, pieces)
