"""Near duplicates by what is seen: near frames bring candidates, a stretch along one time offset proves them (DEDUP §4.3-4.5).

A clip's frames stand in views: full (0), bars_removed (1), mirrored (2), and 3, the mirror of bars_removed, made here from its bits.
Mirrored views are compared between training and evaluation, where a mirrored copy is a leak; within training they are another clip.
A picture has one frame, so it has no stretch: there that one frame must be clearer and nearer than a film's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stmae_data.dedup.hashes import HotBucket, distance_sql, join_hashes
from stmae_data.dedup.policy import Policy
from stmae_data.fingerprint import ALGORITHM, MIRROR_MASK, VIEWS

__all__ = ["STEP_MS", "ContentLog", "find_content_pairs", "find_not_comparable", "load_frames"]

STEP_MS: Final = 125
"""Frames are compared on a grid of eighths of a second."""

_BEST_OFFSETS: Final = 5
"""Time offsets looked at for each pair of clips and views: those whose frames come nearest, summed over all that are near."""

_LEADERS: Final = 4
"""Clips beyond the cap of a hash are compared with so many of those that show it, the best first: a copy of any is a copy of these."""

_NEARLY: Final = 0.8

VIEW_NAMES: Final = (*VIEWS, "bars_removed mirrored")


@dataclass(frozen=True, slots=True)
class ContentLog:
    """What the search met: hashes looked at, near pairs of them, clip pairs verified, and the buckets that were too crowded."""

    num_hashes: int
    num_hits: int
    num_candidates: int
    hot: tuple[HotBucket, ...]


def load_frames(connection: Any, tables: Mapping[int, Sequence[Path]]) -> None:
    """Table `frame` (clip, view, t, h0..h3, quality) of every pool's fingerprint tables; `t` counts eighths of a second.

    Fingerprints of another algorithm do not compare and are left out: their clips are then not comparable.
    """
    connection.execute(
        "CREATE OR REPLACE TABLE frame (clip INTEGER, view UTINYINT, t INTEGER, time_ms INTEGER, h0 UBIGINT, h1 UBIGINT, h2 UBIGINT, h3 UBIGINT, quality UTINYINT)"
    )
    views = (
        "CASE view::VARCHAR " + " ".join(f"WHEN '{name}' THEN {number}" for number, name in enumerate(VIEWS)) + " END"
    )
    for number, paths in tables.items():
        if paths:
            connection.execute(
                f"""INSERT INTO frame
                    SELECT clip.number, {views}, round(time_ms / {STEP_MS}), time_ms, hash0, hash1, hash2, hash3, quality
                    FROM read_parquet(?) AS print JOIN clip USING (clip_id) WHERE pool = {number} AND algorithm = '{ALGORITHM}'""",
                [[str(path) for path in paths]],
            )
    mirrored = ", ".join(f"xor(h{word}, {MIRROR_MASK}::UBIGINT)" for word in range(4))
    connection.execute(f"INSERT INTO frame SELECT clip, 3, t, time_ms, {mirrored}, quality FROM frame WHERE view = 1")


def find_content_pairs(
    connection: Any, policy: Policy, *, left: Sequence[int], right: Sequence[int] | None
) -> ContentLog:
    """Add to `pair` the near duplicates between `left` and `right` pools, or within each left pool, and to `near_miss` what failed.

    `offset_ms` is where the start of b lies in the time of a; `distance` is the median over the stretch.
    """
    is_within = right is None
    _create_hashes(connection, policy, left, right)
    hot = join_hashes(connection, max_bits=_most_bits(policy), cap=policy.bucket_cap, is_self=is_within)
    connection.execute("INSERT INTO hit SELECT id, id, 0 FROM hash WHERE is_left AND is_right AND num_clips > 1")
    _create_candidates(connection, policy, is_within)
    _verify(connection, policy, is_within)
    counts = [
        connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0] for table in ("hash", "hit", "candidate")
    ]
    for table in ("hash", "hit", "shown", "candidate", "grid", "facing", "stretch"):
        connection.execute(f"DROP TABLE {table}")
    return ContentLog(counts[0], counts[1], counts[2], tuple(hot))


def find_not_comparable(connection: Any, policy: Policy, *, pools: Sequence[int]) -> dict[int, str]:
    """Clips of these pools that no other could be found equal to by content, however equal it is, and why: {number: reason}.

    Not being found makes them no unique clips. A picture needs one clear frame; a film needs frames enough for the shortest stretch that
    proves anything, and half of these usable.
    """
    wanted = -(-policy.min_stretch_ms // STEP_MS)
    usable = f"quality >= {policy.min_quality}"
    rows = connection.execute(
        f"""WITH mine AS (SELECT number, media_kind IS NOT DISTINCT FROM 'image' AS is_picture FROM clip WHERE pool IN (SELECT unnest(?::INTEGER[]))),
                 counted AS (SELECT clip, view, max(t) + 1 AS length, count(*) FILTER ({usable}) AS usable, max(quality) AS quality
                             FROM frame GROUP BY clip, view),
                 clips AS (SELECT clip, max(length) AS length, max(usable) AS usable, max(quality) AS quality FROM counted GROUP BY clip),
                 -- A run of equal frames stands as its first and last: these few clips are counted again in full.
                 few AS (SELECT clip, view, {usable} AS is_usable, coalesce(lead(t) OVER (PARTITION BY clip, view ORDER BY t, time_ms), t + 1) - t AS steps
                         FROM frame WHERE clip IN (SELECT clip FROM clips WHERE 2 * usable < {wanted})),
                 filled AS (SELECT clip, max(steps) AS usable FROM (SELECT clip, view, sum(steps) FILTER (is_usable) AS steps FROM few GROUP BY ALL) GROUP BY clip)
            SELECT number, CASE
                       WHEN clips.clip IS NULL THEN 'no frame hashes of {ALGORITHM}; stmae-data fingerprint makes them'
                       WHEN is_picture THEN 'a picture of quality below {policy.picture_quality}'
                       WHEN length < {wanted} THEN 'shorter than {policy.min_stretch_ms / 1000:g} s'
                       ELSE 'hardly a frame of quality {policy.min_quality} or more' END
            FROM mine LEFT JOIN clips ON clips.clip = number LEFT JOIN filled ON filled.clip = number
            WHERE clips.clip IS NULL OR CASE WHEN is_picture THEN quality < {max(policy.picture_quality, policy.min_quality)}
                                             ELSE length < {wanted} OR 2 * coalesce(filled.usable, clips.usable) < {wanted} END
            ORDER BY number""",
        [list(pools)],
    ).fetchall()
    return dict(rows)


def _create_hashes(connection: Any, policy: Policy, left: Sequence[int], right: Sequence[int] | None) -> None:
    """Table `shown` (clip, view, t, hash id, sides) of usable frames, and `hash`, each different hash once."""
    ours = f"pool IN ({', '.join(map(str, left))})"
    theirs = ours if right is None else f"pool IN ({', '.join(map(str, right))})"
    # Mirroring one side is enough: the mirrored a against b is a against the mirrored b.
    views = "view < 2" if right is None else f"(view < 2 OR ({theirs}))"
    connection.execute(
        f"""CREATE OR REPLACE TABLE hash AS
            SELECT row_number() OVER (ORDER BY h0, h1, h2, h3)::INTEGER AS id, * FROM (
                SELECT h0, h1, h2, h3, bool_or({ours} AND view < 2) AS is_left, bool_or({theirs}) AS is_right, count(DISTINCT clip) AS num_clips
                FROM frame JOIN clip ON clip.number = frame.clip
                WHERE quality >= {policy.min_quality} AND {views} AND (({ours}) OR ({theirs})) GROUP BY ALL)"""
    )
    # A frame that hundreds of clips share (a logo, a test card) names none of them: the best are compared, and with a few of them the rest.
    connection.execute(
        f"""CREATE OR REPLACE TABLE shown AS
            SELECT clip, pool, view, t, time_ms, id, {ours} AND view < 2 AS is_left, {theirs} AS is_right,
                   dense_rank() OVER (PARTITION BY id, {theirs} ORDER BY clip) AS place
            FROM frame JOIN clip ON clip.number = frame.clip JOIN hash USING (h0, h1, h2, h3)
            WHERE quality >= {policy.min_quality} AND {views} AND (({ours}) OR ({theirs}))"""
    )


def _create_candidates(connection: Any, policy: Policy, is_within: bool) -> None:
    """Table `candidate` (id, a, b, view_a, view_b, shift): clip pairs with near frames, at the time offsets where these are nearest."""
    order = "x.clip < y.clip AND x.pool = y.pool" if is_within else "x.clip != y.clip"
    both = f"SELECT a, b, distance FROM hit {'UNION SELECT b, a, distance FROM hit' if is_within else ''}"
    few, rest, leading = f"<= {policy.hash_cap}", f"> {policy.hash_cap}", f"<= {min(_LEADERS, policy.hash_cap)}"
    met = " UNION ALL ".join(
        f"""SELECT x.clip AS a, y.clip AS b, x.view AS view_a, y.view AS view_b, x.t - y.t AS shift, distance, x.time_ms - y.time_ms AS apart_ms
            FROM near JOIN shown AS x ON x.id = near.a AND x.is_left AND x.place {ours}
                 JOIN shown AS y ON y.id = near.b AND y.is_right AND y.place {theirs} WHERE {order}"""
        for ours, theirs in ((few, few), (leading, rest), (rest, leading))
    )
    connection.execute(
        f"""CREATE OR REPLACE TABLE candidate AS
            WITH near AS ({both}), met AS ({met})
            SELECT row_number() OVER (ORDER BY a, b, view_a, view_b, shift)::INTEGER AS id, * EXCLUDE (nearness)
            FROM (SELECT a, b, view_a, view_b, shift, sum({_most_bits(policy) + 1} - distance) AS nearness, median(apart_ms)::BIGINT AS offset_ms
                  FROM met GROUP BY ALL)
            QUALIFY row_number() OVER (PARTITION BY a, b, view_a, view_b ORDER BY nearness DESC, abs(shift), shift) <= {_BEST_OFFSETS}"""
    )


def _most_bits(policy: Policy) -> int:
    """How near two frames must be to bring their clips up."""
    return max(policy.gate_bits, policy.reach_bits, policy.picture_bits)


def _verify(connection: Any, policy: Policy, is_within: bool) -> None:
    """Along each candidate's offset find the stretch that speaks most for it, and judge that."""
    # Pruned runs are filled again: a frame is shown until the next one.
    connection.execute(
        """CREATE OR REPLACE TABLE grid AS
           SELECT clip, view, unnest(range(t, coalesce(next, t + 1)))::INTEGER AS t, time_ms, h0, h1, h2, h3, quality
           FROM (SELECT *, lead(t) OVER (PARTITION BY clip, view ORDER BY t, time_ms) AS next FROM frame
                 WHERE clip IN (SELECT a FROM candidate UNION SELECT b FROM candidate))"""
    )
    connection.execute(
        f"""CREATE OR REPLACE TABLE facing AS
            SELECT c.id, x.t, least(x.quality, y.quality) AS quality,
                   CASE WHEN least(x.quality, y.quality) >= {policy.min_quality} THEN {distance_sql("x", "y")} ELSE 256 END AS distance
            FROM candidate AS c JOIN grid AS x ON x.clip = c.a AND x.view = c.view_a
                 JOIN grid AS y ON y.clip = c.b AND y.view = c.view_b AND y.t = x.t - c.shift"""
    )
    # Each frame within the median bound counts one up, each beyond it one down; the best-scoring stretch has its median within the bound.
    connection.execute(
        f"""CREATE OR REPLACE TABLE stretch AS
            WITH walked AS (SELECT *, sum(CASE WHEN distance <= {policy.median_bits} THEN 1 ELSE -1 END) OVER (PARTITION BY id ORDER BY t) AS height
                            FROM facing),
                 climbed AS (SELECT *, height - least(0, coalesce(min(height) OVER (PARTITION BY id ORDER BY t ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)) AS score
                             FROM walked),
                 tops AS (SELECT id, max({{'score': score, 'back': -t}}) AS top FROM climbed GROUP BY id),
                 ends AS (SELECT id, top.score AS score, -top.back AS last, height - top.score AS foot
                          FROM tops JOIN walked USING (id) WHERE walked.t = -top.back),
                 starts AS (SELECT id, score, last, (SELECT max(t) FROM walked WHERE walked.id = ends.id AND walked.t < last AND height = foot) AS before FROM ends)
            SELECT id, any_value(score) AS score, count(*) AS num_frames, median(distance) AS median_bits, sum(greatest(0, {policy.median_bits} - distance)) AS weight, min(distance) AS min_bits, max(quality) AS quality,
                   count(*) FILTER (distance <= {policy.gate_bits}) AS num_near, count(*) FILTER (quality < {policy.min_quality}) AS num_skipped, min(t) AS first_t, max(t) AS last_t
            FROM starts JOIN facing USING (id) WHERE t <= last AND (before IS NULL OR t > before) GROUP BY id"""
    )
    share = policy.min_share_within if is_within else policy.min_share_against
    names = "[" + ", ".join(f"'{name}'" for name in VIEW_NAMES) + "]"
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE judged AS
            WITH length AS (SELECT clip, max(t) + 1 AS n, any_value(media_kind IS NOT DISTINCT FROM 'image') AS is_picture
                            FROM frame JOIN clip ON clip.number = frame.clip WHERE view = 0 GROUP BY clip),
                 every AS (SELECT c.*, s.* EXCLUDE (id), s.num_frames / la.n AS share_a, s.num_frames / lb.n AS share_b,
                                  la.is_picture OR lb.is_picture AS is_picture,
                                  CASE WHEN la.is_picture OR lb.is_picture THEN 0 ELSE s.num_frames * {STEP_MS} END AS stretch_ms,
                                  CASE WHEN la.is_picture OR lb.is_picture THEN min_bits <= {policy.picture_bits} AND quality >= {policy.picture_quality}
                                       ELSE ((stretch_ms >= {policy.min_stretch_ms} AND min_bits <= {policy.gate_bits} AND s.median_bits <= {policy.median_bits})
                                             OR (stretch_ms >= {policy.long_stretch_ms} AND s.median_bits <= {policy.long_median_bits}))
                                            AND greatest(share_a, share_b) >= {share} END AS is_same
                           FROM candidate AS c JOIN stretch AS s USING (id) JOIN length AS la ON la.clip = a JOIN length AS lb ON lb.clip = b)
            SELECT * EXCLUDE (best) FROM (SELECT *, max(weight) OVER (PARTITION BY a, b, is_same) AS best FROM every)
            -- Of offsets that frames speak for nearly as much, the one where each speaks most: slow motion looks alike at the next offset too.
            QUALIFY row_number() OVER (PARTITION BY a, b ORDER BY is_same DESC, weight >= {_NEARLY} * best DESC, weight / num_frames DESC,
                                                                  view_a, view_b, abs(shift), shift) = 1"""
    )
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE evidence AS
            WITH best AS (SELECT j.id, f.t, f.distance, row_number() OVER (PARTITION BY j.id ORDER BY f.distance, f.t) AS rank
                          FROM judged AS j JOIN facing AS f USING (id) WHERE f.t BETWEEN first_t AND last_t QUALIFY rank <= 3),
                 shown AS (SELECT best.id, list({{'time_ms': x.t * {STEP_MS}, 'other_time_ms': y.t * {STEP_MS}, 'distance': best.distance,
                                  'hash': {_hex("x")}, 'other_hash': {_hex("y")}}} ORDER BY rank) AS frames
                           FROM best JOIN judged AS j USING (id) JOIN grid AS x ON x.clip = a AND x.view = view_a AND x.t = best.t
                                JOIN grid AS y ON y.clip = b AND y.view = view_b AND y.t = best.t - shift GROUP BY best.id)
            SELECT a, b, is_same, is_picture, offset_ms, median_bits AS distance, score, num_frames,
                   to_json({{'view': {names}[view_a + 1], 'other_view': {names}[view_b + 1], 'num_frames': num_frames, 'num_near': num_near, 'num_skipped': num_skipped,
                            'stretch_ms': stretch_ms, 'share': round(share_a, 4), 'other_share': round(share_b, 4),
                            'min_bits': min_bits, 'median_bits': median_bits, 'frames': frames,
                            'threshold': CASE WHEN is_picture THEN {policy.picture_bits} ELSE {policy.median_bits} END}})::VARCHAR AS evidence
            FROM judged JOIN shown USING (id)"""
    )
    connection.execute(
        """INSERT INTO pair SELECT a, b, 'content', NULL, NULL, offset_ms, distance, evidence FROM evidence WHERE is_same"""
    )
    connection.execute(
        "INSERT INTO near_miss SELECT a, b, offset_ms, distance, evidence FROM evidence WHERE NOT is_same AND (num_frames >= 4 OR is_picture)"
    )


def _hex(row: str) -> str:
    return "concat(" + ", ".join(f"lpad(lower(hex({row}.h{word})), 16, '0')" for word in range(4)) + ")"
