"""The exact levels of sameness, each one join: bytes, stream, id, video, overlap."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

__all__ = ["create_pairs", "find_pairs_between", "find_pairs_within", "is_comparable"]

_PAIR: Final = """CREATE TABLE pair (
    a INTEGER, b INTEGER, level VARCHAR, overlap_ms BIGINT, iou DOUBLE, offset_ms BIGINT, distance DOUBLE, evidence VARCHAR)"""

_SAME_VIDEO: Final = "a.platform_id = b.platform_id AND a.platform = b.platform"
_CONDITIONS: Final = {
    # One file may be cut into several clips, so the same source bytes count only where the same stretch was decoded.
    "bytes": "a.source_sha256 = b.source_sha256 AND coalesce(a.stream_sha256 = b.stream_sha256, true)",
    "stream": "a.stream_sha256 = b.stream_sha256",
    "id": f"{_SAME_VIDEO} AND a.start_ms IS NOT DISTINCT FROM b.start_ms AND a.end_ms IS NOT DISTINCT FROM b.end_ms",
    "video": _SAME_VIDEO,
    "overlap": f"{_SAME_VIDEO} AND a.start_ms < b.end_ms AND b.start_ms < a.end_ms",
}
_EQUAL: Final = {
    "bytes": "source_sha256, stream_sha256",
    "stream": "stream_sha256",
    "id": "platform, platform_id, start_ms, end_ms",
}
# Where all known streams of one file are the same, a clip of it whose stream is unknown has that one too, as between two sets.
_ROWS: Final = {
    "bytes": """(SELECT * REPLACE (CASE WHEN min(stream_sha256) OVER source = max(stream_sha256) OVER source THEN min(stream_sha256) OVER source
                                          ELSE stream_sha256 END AS stream_sha256)
                 FROM clip WINDOW source AS (PARTITION BY pool, source_sha256))"""
}
# A YouTube id without times (a bare list of ids) names a video, not a clip of it.
_IS_CLIP: Final = "{0}.platform_id IS NOT NULL AND ({0}.start_ms IS NOT NULL OR {0}.platform != 'youtube')"
_NEEDED: Final = {
    "bytes": "{0}.source_sha256 IS NOT NULL",
    "stream": "{0}.stream_sha256 IS NOT NULL",
    "id": _IS_CLIP,
    "video": "{0}.platform_id IS NOT NULL",
    "overlap": "{0}.platform_id IS NOT NULL AND {0}.start_ms IS NOT NULL",
}


def create_pairs(connection: Any) -> None:
    """Empty tables `pair` (numbers of two clips, the level, and what there is to show for it) and `near_miss` (what fell short)."""
    connection.execute(_PAIR)
    connection.execute(
        "CREATE TABLE near_miss (a INTEGER, b INTEGER, offset_ms BIGINT, distance DOUBLE, evidence VARCHAR)"
    )


def is_comparable(connection: Any, level: str, pool: int) -> bool:
    """Whether a pool has what the level looks at; False where not one of its clips does. An empty pool is comparable."""
    rows = connection.execute(
        f"SELECT count(*) = 0 OR bool_or({_NEEDED[level].format('clip')}) FROM clip WHERE pool = ?", [pool]
    ).fetchall()
    return bool(rows[0][0])


def find_pairs_between(connection: Any, levels: Iterable[str], *, left: Iterable[int], right: Iterable[int]) -> None:
    """Add to `pair` every pair of a clip a in the `left` pools and a clip b in the `right` ones, level by level.

    Intervals are half-open: touching ones do not overlap. `offset_ms` is where b starts in the time of a.
    """
    sides = f"a.pool IN ({_numbers(left)}) AND b.pool IN ({_numbers(right)})"
    for level in levels:
        if level in _CONDITIONS:
            condition = f"{_CONDITIONS[level]} AND {sides} AND {_NEEDED[level].format('a')}"
            _insert(connection, level, f"clip AS a JOIN clip AS b ON {condition}")


def find_pairs_within(connection: Any, levels: Iterable[str], *, pools: Iterable[int]) -> None:
    """Add to `pair` each clip b together with the best clip a of the same pool that is the same, level by level.

    These levels are equalities, so the pair with the best says all: a thousand copies make a thousand pairs, not half a million.
    """
    for level in levels:
        if level in _EQUAL:
            connection.execute(
                f"""CREATE OR REPLACE TEMP TABLE copies AS
                    SELECT * FROM (SELECT number, min(number) OVER (PARTITION BY pool, {_EQUAL[level]}) AS best FROM {_ROWS.get(level, "clip")} AS clip
                                   WHERE pool IN ({_numbers(pools)}) AND {_NEEDED[level].format("clip")})
                    WHERE best < number"""
            )
            _insert(
                connection,
                level,
                "copies JOIN clip AS a ON a.number = copies.best JOIN clip AS b ON b.number = copies.number",
            )


def _insert(connection: Any, level: str, origin: str) -> None:
    connection.execute(
        f"""INSERT INTO pair
            SELECT first, second, '{level}', overlap_ms, overlap_ms / nullif(span_ms - overlap_ms, 0), offset_ms, NULL, NULL
            FROM (SELECT a.number AS first, b.number AS second, b.start_ms - a.start_ms AS offset_ms,
                         a.end_ms - a.start_ms + b.end_ms - b.start_ms AS span_ms,
                         greatest(least(a.end_ms, b.end_ms) - greatest(a.start_ms, b.start_ms), 0) AS overlap_ms
                  FROM {origin})"""
    )


def _numbers(pools: Iterable[int]) -> str:
    return ", ".join(str(pool) for pool in pools) or "NULL"
