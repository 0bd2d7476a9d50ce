"""Run a comparison: pools into tables, pairs at every level, choices, counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stmae_data.dedup.clips import Pool, comparing, fingerprint_files, load_pool
from stmae_data.dedup.content import ContentLog, find_content_pairs, find_not_comparable, load_frames
from stmae_data.dedup.decide import Choice, Clip, Edge, choose_leaks, choose_within
from stmae_data.dedup.levels import create_pairs, find_pairs_between, find_pairs_within, is_comparable
from stmae_data.dedup.policy import Policy
from stmae_data.dedup.reports import FoundPair, LeakCounts
from stmae_data.errors import Reason
from stmae_data.records import LEVELS

__all__ = ["Found", "compare", "count_pairs"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Found:
    """What a comparison found; the first `num_training` pools are training. `clips` holds every clip that is named anywhere."""

    pools: tuple[Pool, ...]
    num_training: int
    clips: dict[int, Clip]
    between: tuple[Edge, ...]
    within: tuple[Edge, ...]
    choices: tuple[Choice, ...]
    near_misses: tuple[Edge, ...]
    not_comparable: Mapping[int, str]
    """Clips that the level content can say nothing about, and why."""
    across: tuple[tuple[str, str, int], ...]
    logs: tuple[ContentLog, ...]
    filtered: tuple[tuple[int, str], ...] = ()
    """Clips that went by a rule before anything was compared, each with the name of its filter."""

    def filtered_of(self, set_name: str) -> list[tuple[int, str]]:
        """What a filter takes from one set."""
        return [each for each in self.filtered if self.pools[self.clips[each[0]].pool].set_name == set_name]

    def choices_of(self, set_name: str) -> list[Choice]:
        """What goes from one set, strictest first for each clip."""
        return [each for each in self.choices if self.pools[self.clips[each.number].pool].set_name == set_name]

    def reported(self) -> tuple[FoundPair, ...]:
        """Every accepted pair at every level, evaluation first, sorted."""
        going = {choice.number for choice in self.choices}
        pairs = [self._pair(edge.a, edge.b, edge, keep=edge.b) for edge in self.between]
        # Copies come as pairs with the best of them; where that one is told apart, another is why they go.
        chosen = (edge for choice in self.choices if choice.reason == Reason.DUPLICATE for edge in choice.edges)
        within = {(edge.a, edge.b, edge.level): edge for edge in (*chosen, *self.within)}
        for edge in within.values():
            better_stays = edge.a not in going or edge.b in going
            pairs.append(self._pair(edge.b, edge.a, edge, keep=edge.a if better_stays else edge.b))
        return tuple(
            sorted(pairs, key=lambda pair: (pair.a_label, pair.b_label, LEVELS.index(pair.level), pair.a, pair.b))
        )

    def missed(self) -> tuple[FoundPair, ...]:
        """Pairs that come near the thresholds of the content level without reaching them, nearest first; both stay."""
        return tuple(self._pair(edge.a, edge.b, edge, keep=edge.b) for edge in self.near_misses)

    def _pair(self, first: int, second: int, edge: Edge, *, keep: int) -> FoundPair:
        a, b = self.clips[first], self.clips[second]
        offset = edge.offset_ms if edge.offset_ms is None or first == edge.a else -edge.offset_ms
        told = json.loads(edge.evidence or "{}")
        ours, theirs = ("", "other_") if first == edge.a else ("other_", "")
        return FoundPair(
            a.clip_id,
            b.clip_id,
            edge.level,
            None if offset is None else offset / 1000,
            edge.distance,
            self.clips[keep].clip_id,
            self.pools[a.pool].label,
            self.pools[b.pool].label,
            tuple(
                (frame[f"{ours}time_ms"], frame[f"{theirs}time_ms"], frame["distance"])
                for frame in told.get("frames", [])
            ),
            (told[f"{ours}view"], told[f"{theirs}view"]) if told else None,
            (self._set_of(a), self._set_of(b)),
        )

    def _set_of(self, clip: Clip) -> str | None:
        pool = self.pools[clip.pool]
        return pool.set_name if pool.has_media else None


def compare(
    training: Sequence[Pool],
    evaluation: Sequence[Pool],
    rules: Policy,
    *,
    between: Sequence[str],
    within: Sequence[str],
    filtered: Mapping[int, Mapping[str, str]] | None = None,
    progress: Progress | None = None,
) -> Found:
    """Compare training with evaluation at the levels `between`, then what is left of training with itself at the levels `within`.

    `filtered` names rows that are left out from the start: {number of a training pool: {row id: name of the filter}}.
    """
    pools = (*training, *evaluation)
    ours, theirs = range(len(training)), range(len(training), len(pools))
    apart = {frozenset(pair) for pair in rules.not_duplicates}
    logs = []
    steps = _Steps(progress, 4)
    with comparing() as connection:
        for number, pool in enumerate(pools):
            load_pool(connection, pool, number)
        gone = _leave_out(connection, filtered or {})
        create_pairs(connection)
        has_content = "content" in between or "content" in within
        if has_content:
            load_frames(connection, {number: fingerprint_files(pool) for number, pool in enumerate(pools)})
        not_comparable = find_not_comparable(connection, rules, pools=_with_media(pools)) if has_content else {}
        across = _across(connection, training) if "id" in between else ()
        steps.done()
        find_pairs_between(connection, between, left=ours, right=theirs)
        if "content" in between and training and evaluation:
            logs.append(find_content_pairs(connection, rules, left=ours, right=theirs))
        edges_between = _edges(connection)
        clips = _clips(connection, _named(edges_between), not_comparable)
        steps.done()

        def is_told_apart(a: int, b: int) -> bool:
            return frozenset((clips[a].clip_id, clips[b].clip_id)) in apart

        leaking = choose_leaks(edges_between, is_told_apart=is_told_apart)
        edges_within: list[Edge] = []
        if within and training:
            # What leaks is gone already: it can neither be a copy nor stay instead of one.
            leaked = sorted({choice.number for choice in leaking})
            connection.execute("DELETE FROM clip WHERE number IN (SELECT unnest(?::INTEGER[]))", [leaked])
            if has_content:
                connection.execute("DELETE FROM frame WHERE clip NOT IN (SELECT number FROM clip)")
            connection.execute("DELETE FROM pair")
            find_pairs_within(connection, within, pools=ours)
            if "content" in within:
                logs.append(find_content_pairs(connection, rules, left=ours, right=None))
            edges_within = _edges(connection)
        steps.done()
        near = connection.execute(
            "SELECT a, b, 'content', NULL, NULL, offset_ms, distance, evidence FROM near_miss ORDER BY distance, a, b LIMIT 10000"
        ).fetchall()
        near_misses = [Edge(*row) for row in near]
        clips |= {clip.number: clip for clip, _ in gone}
        clips |= _clips(connection, _named([*edges_within, *near_misses]) - set(clips), [])
        copies = choose_within(edges_within, is_told_apart=is_told_apart)
        steps.done()
    return Found(
        pools,
        len(training),
        clips,
        tuple(edge for edge in edges_between if not is_told_apart(edge.a, edge.b)),
        tuple(edge for edge in edges_within if not is_told_apart(edge.a, edge.b)),
        (*leaking, *copies),
        tuple(edge for edge in near_misses if edge.a in clips and edge.b in clips),
        not_comparable,
        across,
        tuple(logs),
        tuple((clip.number, name) for clip, name in gone),
    )


def count_pairs(
    training: Sequence[Pool],
    evaluation: Sequence[Pool],
    rules: Policy,
    *,
    levels: Sequence[str],
    progress: Progress | None = None,
) -> list[LeakCounts]:
    """Distinct rows on both sides of every pair of pools, level by level; None where one side has nothing to compare."""
    pools = (*training, *evaluation)
    ours, theirs = range(len(training)), range(len(training), len(pools))
    steps = _Steps(progress, 2)
    with comparing() as connection:
        sizes = [load_pool(connection, pool, number) for number, pool in enumerate(pools)]
        create_pairs(connection)
        steps.done()
        find_pairs_between(connection, levels, left=ours, right=theirs)
        without: Mapping[int, str] = {}
        if (
            "content" in levels
            and any(pool.has_media for pool in training)
            and any(pool.has_media for pool in evaluation)
        ):
            load_frames(connection, {number: fingerprint_files(pool) for number, pool in enumerate(pools)})
            without = find_not_comparable(connection, rules, pools=_with_media(pools))
            find_content_pairs(connection, rules, left=ours, right=theirs)
        if rules.not_duplicates:
            _forget(connection, rules)
        pool_of_clip = dict(
            connection.execute(
                "SELECT number, pool FROM clip WHERE number IN (SELECT unnest(?::INTEGER[]))", [list(without)]
            ).fetchall()
        )
        rows = connection.execute(
            """SELECT x.pool, y.pool, level, count(DISTINCT a), count(DISTINCT b) FROM pair
               JOIN clip AS x ON x.number = a JOIN clip AS y ON y.number = b GROUP BY ALL"""
        ).fetchall()
        counts = {(a, b, level): (n, m) for a, b, level, n, m in rows}

        num_lost = Counter(pool_of_clip.values())

        def has(level: str, number: int) -> bool:
            if level != "content":
                return is_comparable(connection, level, number)
            return pools[number].has_media and (not sizes[number] or num_lost[number] < sizes[number])

        comparable = {(level, number) for level in levels for number in range(len(pools)) if has(level, number)}
        steps.done()
    found = []
    for ours_number in ours:
        for number in theirs:
            told = {
                level: counts.get((ours_number, number, level), (0, 0))
                if (level, ours_number) in comparable and (level, number) in comparable
                else None
                for level in LEVELS
            }
            lost = num_lost[ours_number] + num_lost[number]
            found.append(LeakCounts(pools[ours_number].label, pools[number].label, told, lost, sizes[number]))
    return found


class _Steps:
    """Counts the steps of a comparison for a progress bar."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.passed = progress, total, 0

    def done(self) -> None:
        """One more is done."""
        self.passed += 1
        if self.progress is not None:
            self.progress("compare", self.passed, self.total)


def _leave_out(connection: Any, filtered: Mapping[int, Mapping[str, str]]) -> list[tuple[Clip, str]]:
    gone = []
    for pool, names in filtered.items():
        numbers = connection.execute(
            "SELECT number FROM clip WHERE pool = ? AND row_id IN (SELECT unnest(?::VARCHAR[]))", [pool, list(names)]
        ).fetchall()
        clips = _clips(connection, [row[0] for row in numbers], [])
        gone += [(clip, names[clip.row_id]) for _, clip in sorted(clips.items())]
    connection.execute(
        "DELETE FROM clip WHERE number IN (SELECT unnest(?::INTEGER[]))", [[clip.number for clip, _ in gone]]
    )
    return gone


def _edges(connection: Any) -> list[Edge]:
    rows = connection.execute(
        "SELECT a, b, level, overlap_ms, iou, offset_ms, distance, evidence FROM pair ORDER BY a, b, level"
    ).fetchall()
    return [Edge(*row) for row in rows]


def _named(edges: Iterable[Edge]) -> set[int]:
    return {number for edge in edges for number in (edge.a, edge.b)}


def _clips(connection: Any, numbers: Iterable[int], more: Iterable[int]) -> dict[int, Clip]:
    rows = connection.execute(
        """SELECT number, pool, row_id, clip_id, release, source_sha256, start_ms, end_ms FROM clip
           WHERE number IN (SELECT unnest(?::INTEGER[]))""",
        [sorted({*numbers, *more})],
    ).fetchall()
    return {row[0]: Clip(*row) for row in rows}


def _with_media(pools: Sequence[Pool]) -> list[int]:
    return [number for number, pool in enumerate(pools) if pool.has_media]


def _across(connection: Any, training: Sequence[Pool]) -> tuple[tuple[str, str, int], ...]:
    """How many clips two training splits of different sets share by id: told, never taken out."""
    rows = connection.execute(
        """SELECT a.pool, b.pool, count(DISTINCT a.number) FROM clip AS a JOIN clip AS b
           ON a.platform = b.platform AND a.platform_id = b.platform_id AND a.start_ms IS NOT DISTINCT FROM b.start_ms
              AND a.end_ms IS NOT DISTINCT FROM b.end_ms
           WHERE a.pool < b.pool AND b.pool < ? GROUP BY ALL ORDER BY ALL""",
        [len(training)],
    ).fetchall()
    return tuple(
        (training[a].label, training[b].label, n) for a, b, n in rows if training[a].set_name != training[b].set_name
    )


def _forget(connection: Any, rules: Policy) -> None:
    """Take pairs out that a person judged to differ."""
    firsts, seconds = [pair[0] for pair in rules.not_duplicates], [pair[1] for pair in rules.not_duplicates]
    connection.execute(
        """DELETE FROM pair USING clip AS x, clip AS y, (SELECT unnest(?::VARCHAR[]) AS one, unnest(?::VARCHAR[]) AS other) AS told
           WHERE x.number = a AND y.number = b AND least(x.clip_id, y.clip_id) = one AND greatest(x.clip_id, y.clip_id) = other""",
        [firsts, seconds],
    )
