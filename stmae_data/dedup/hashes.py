"""Near pairs of 256-bit hashes in DuckDB: equal bands bring candidates, the distance decides, crowded buckets are checked apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

__all__ = ["HotBucket", "distance_sql", "join_hashes"]

_WIDE: Final = (16, 16)
"""16 bands of 16 bits: any pair within 15 bits meets in one, of random pairs at 21-31 bits about 97 %."""
_NARROW: Final = (11, 23)
"""11 bands of 23 bits for millions of hashes, where 16-bit buckets crowd: any pair within 10 bits meets."""
_NARROW_FROM: Final = 4_000_000

_EXACT_PAIRS: Final = 200_000_000
"""Comparisons spent on crowded buckets in full, smallest buckets first; about ten seconds."""
_LEADERS: Final = 32
"""Beyond that every member of a crowded bucket is compared with so many of it."""


@dataclass(frozen=True, slots=True)
class HotBucket:
    """A band value that too many hashes share: how many, and whether all pairs of them were compared."""

    band: int
    key: int
    num_hashes: int
    is_exact: bool


def distance_sql(a: str, b: str) -> str:
    """SQL for the bits in which the hashes of two rows differ, 0..256.

    bit_count of an integer is a TINYINT in DuckDB: four of them overflow when added, so each is cast.
    """
    return "(" + " + ".join(f"bit_count(xor({a}.h{word}, {b}.h{word}))::INTEGER" for word in range(4)) + ")"


def join_hashes(connection: Any, *, max_bits: int, cap: int, is_self: bool) -> list[HotBucket]:
    """Fill table `hit` (a, b, distance) from table `hash` (id INTEGER, h0..h3 UBIGINT, is_left, is_right BOOLEAN; hashes distinct).

    Pairs a (left) and b (right) at most `max_bits` apart; in a self-join each pair once, a < b. A hash is never paired with itself.
    Band by band, so that only survivors stand in memory.

    Returns:
        The crowded buckets, largest first.
    """
    connection.execute("CREATE OR REPLACE TABLE hit (a INTEGER, b INTEGER, distance INTEGER)")
    total = connection.execute("SELECT count(*) FROM hash").fetchall()[0][0]
    bands, width = _NARROW if total >= _NARROW_FROM else _WIDE
    cap = max(cap, 20 * total >> width)
    order = "a.id < b.id" if is_self else "a.id != b.id"
    hot: list[HotBucket] = []
    budget = _EXACT_PAIRS
    for band in range(bands):
        key = _band_sql(band, width)
        connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE crowd AS
                SELECT {key} AS key, count(*) AS n, count(*) FILTER (is_left) AS n_left, count(*) FILTER (is_right) AS n_right
                FROM hash GROUP BY 1 HAVING n > {cap} AND n_left > 0 AND n_right > 0"""
        )
        crowds = connection.execute("SELECT key, n, n_left * n_right FROM crowd ORDER BY n, key").fetchall()
        calm = "WHERE k NOT IN (SELECT key FROM crowd)" if crowds else ""
        left, right = (
            f"(FROM (SELECT *, {key} AS k FROM hash WHERE {side}) {calm})" for side in ("is_left", "is_right")
        )
        # Two words decide nearly every candidate; the join then carries half of the bits.
        connection.execute(
            f"""INSERT INTO hit SELECT a.id, b.id, {distance_sql("a", "b")} AS distance
                FROM {left} AS a JOIN {right} AS b ON a.k = b.k
                WHERE bit_count(xor(a.h0, b.h0))::INTEGER + bit_count(xor(a.h1, b.h1))::INTEGER <= {max_bits}
                  AND distance <= {max_bits} AND {order}"""
        )
        for value, size, pairs in crowds:
            is_exact = pairs <= budget
            budget -= pairs if is_exact else 0
            hot.append(HotBucket(band, value, size, is_exact))
            _check_crowd(connection, f"{key} = {value}", order, max_bits=max_bits, is_exact=is_exact, is_self=is_self)
    connection.execute("CREATE OR REPLACE TABLE hit AS SELECT DISTINCT a, b, distance FROM hit")
    return sorted(hot, key=lambda bucket: (-bucket.num_hashes, bucket.band, bucket.key))


def _check_crowd(connection: Any, member: str, order: str, *, max_bits: int, is_exact: bool, is_self: bool) -> None:
    """Compare the members of one crowded bucket: all of them, or all with the first few on either side."""
    leaders = "" if is_exact else f"ORDER BY id LIMIT {_LEADERS}"
    sides = [(f"(FROM hash WHERE is_left AND {member} {leaders})", f"(FROM hash WHERE is_right AND {member})")]
    if leaders and not is_self:
        sides.append((f"(FROM hash WHERE is_left AND {member})", f"(FROM hash WHERE is_right AND {member} {leaders})"))
    for left, right in sides:
        connection.execute(
            f"""INSERT INTO hit SELECT a.id, b.id, {distance_sql("a", "b")} AS distance FROM {left} AS a, {right} AS b
                WHERE distance <= {max_bits} AND {order}"""
        )


def _band_sql(band: int, width: int) -> str:
    """SQL for bits [band * width, (band + 1) * width) of a hash, counted from the lowest bit of h3 upwards."""
    start = band * width
    word, shift = 3 - start // 64, start % 64
    taken = min(width, 64 - shift)
    low = f"((h{word} >> {shift}) & {(1 << taken) - 1})"
    if taken == width:
        return f"{low}::UINTEGER"
    rest = width - taken
    return f"({low} | ((h{word - 1} & {(1 << rest) - 1}) << {taken}))::UINTEGER"
