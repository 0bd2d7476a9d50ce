"""From pairs to decisions: who stays, who goes, by a direct edge to the one that stays, with everything needed to judge it again."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from stmae_data import __version__, files
from stmae_data.dedup.clips import Pool
from stmae_data.dedup.policy import Policy
from stmae_data.errors import Reason
from stmae_data.fingerprint import ALGORITHM
from stmae_data.records import LEVELS
from stmae_data.rewrite import Verdict

__all__ = [
    "DECISION_COLUMNS",
    "GROUP_COLUMNS",
    "Choice",
    "Clip",
    "Edge",
    "choose_leaks",
    "choose_within",
    "has_news",
    "verdicts",
    "write_books",
]

DECISION_COLUMNS: Final = {
    "decision_id": "VARCHAR",
    "clip_id": "VARCHAR",
    "row_id": "VARCHAR",
    "verb": "VARCHAR",
    "reason": "VARCHAR",
    "level": "VARCHAR",
    "levels": "VARCHAR[]",
    "set_name": "VARCHAR",
    "split": "VARCHAR",
    "release": "VARCHAR",
    "source_sha256": "VARCHAR",
    "start_ms": "BIGINT",
    "end_ms": "BIGINT",
    "other_clip_id": "VARCHAR",
    "other_row_id": "VARCHAR",
    "other_set": "VARCHAR",
    "other_split": "VARCHAR",
    "other_release": "VARCHAR",
    "other_source_sha256": "VARCHAR",
    "other_start_ms": "BIGINT",
    "other_end_ms": "BIGINT",
    "overlap_ms": "BIGINT",
    "iou": "DOUBLE",
    "offset_ms": "BIGINT",
    "distance_bits": "DOUBLE",
    "min_distance_bits": "INTEGER",
    "view": "VARCHAR",
    "other_view": "VARCHAR",
    "stretch_ms": "BIGINT",
    "num_near_frames": "INTEGER",
    "num_skipped_frames": "INTEGER",
    "share": "DOUBLE",
    "other_share": "DOUBLE",
    "frames": "STRUCT(time_ms BIGINT, other_time_ms BIGINT, distance INTEGER, hash VARCHAR, other_hash VARCHAR)[]",
    "threshold": "DOUBLE",
    "policy": "VARCHAR",
    "policy_version": "VARCHAR",
    "algorithm": "VARCHAR",
    "stmae_version": "VARCHAR",
    "run_id": "VARCHAR",
    "detail": "VARCHAR",
}
"""Columns of `meta/decisions/<run>.parquet` (FACTS-inputs §4.3, DEDUP §4.7): the clip decided on first, then the other one."""

GROUP_COLUMNS: Final = {
    "group_id": "VARCHAR",
    "kind": "VARCHAR",
    "clip_id": "VARCHAR",
    "score": "DOUBLE",
    "is_keeper": "BOOLEAN",
}
"""Columns of `meta/groups.parquet`: every clip that went beside the one that stayed; `score` is the share of equal bits."""

_MOST_NEAR_MISSES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Clip:
    """One compared clip; `number` orders the clips of a pool best first."""

    number: int
    pool: int
    row_id: str
    clip_id: str
    release: str | None
    source_sha256: str | None
    start_ms: int | None
    end_ms: int | None


@dataclass(frozen=True, slots=True)
class Edge:
    """One accepted pair at one level."""

    a: int
    b: int
    level: str
    overlap_ms: int | None = None
    iou: float | None = None
    offset_ms: int | None = None
    distance: float | None = None
    evidence: str | None = None

    @property
    def rank(self) -> int:
        """Strictest level first."""
        return LEVELS.index(self.level)


@dataclass(frozen=True, slots=True)
class Choice:
    """Clip `number` goes because of `other`, which stays; `edges` are all levels at which the two are the same."""

    number: int
    other: int
    reason: Reason
    edges: tuple[Edge, ...] = field(default=())


def choose_leaks(edges: Iterable[Edge], *, is_told_apart: Callable[[int, int], bool]) -> list[Choice]:
    """Training clips (a) that an evaluation clip (b) sends away: the evaluation set always wins. One choice for every such pair."""
    by_pair: dict[tuple[int, int], list[Edge]] = defaultdict(list)
    for edge in edges:
        if not is_told_apart(edge.a, edge.b):
            by_pair[edge.a, edge.b].append(edge)
    return [
        Choice(a, b, Reason.LEAK, tuple(sorted(found, key=_rank)))
        for (a, b), found in sorted(
            by_pair.items(), key=lambda item: (item[0][0], min(e.rank for e in item[1]), item[0][1])
        )
    ]


def choose_within(edges: Iterable[Edge], *, is_told_apart: Callable[[int, int], bool]) -> list[Choice]:
    """Copies within training, without chains: a clip goes only for a better one that stays and to which it has an edge itself.

    Edges of the equality levels come as stars around the best clip; all their members are equal, so any two of them share an edge.
    """
    classes: dict[int, set[tuple[str, int]]] = defaultdict(set)
    near: dict[int, dict[int, Edge]] = defaultdict(dict)
    for edge in edges:
        if edge.level == "content":
            near[edge.b][edge.a] = edge
            near[edge.a]
        else:
            classes[edge.a].add((edge.level, edge.a))
            classes[edge.b].add((edge.level, edge.a))
    kept: set[int] = set()
    kept_of_class: dict[tuple[str, int], list[int]] = defaultdict(list)
    choices = []
    for number in sorted(set(classes) | set(near)):
        found: dict[int, list[Edge]] = defaultdict(list)
        for level, star in sorted(classes[number]):
            for other in kept_of_class[level, star]:
                found[other].append(Edge(other, number, level))
        for other, edge in near[number].items():
            if other in kept:
                found[other].append(edge)
        same = {other: sorted(each, key=_rank) for other, each in found.items() if not is_told_apart(other, number)}
        if same:
            best = min(same, key=lambda other: (same[other][0].rank, other))
            choices.append(Choice(number, best, Reason.DUPLICATE, tuple(same[best])))
        else:
            kept.add(number)
            for star_key in classes[number]:
                kept_of_class[star_key].append(number)
    return choices


def _rank(edge: Edge) -> int:
    return edge.rank


def write_books(
    folder: Path,
    *,
    source: Path,
    run_id: str,
    policy: Policy,
    pools: Sequence[Pool],
    clips: Mapping[int, Clip],
    choices: Sequence[Choice],
    filtered: Sequence[tuple[int, str]],
    near_misses: Sequence[Edge],
    not_comparable: Mapping[int, str],
) -> None:
    """Write `meta/decisions/<run>.parquet` and add to `meta/groups.parquet`: before anything changes."""
    rows = [_decision(choice, run_id=run_id, pools=pools, clips=clips) for choice in choices]
    conditions = dict(policy.filters)
    rows += [
        _one_side(clips[number], pools, "")
        | {
            "decision_id": decision_id(run_id, clips[number].row_id, f"filter {name}"),
            "verb": "drop",
            "reason": str(Reason.FILTERED),
            "detail": f"filter {name}: {conditions[name]}",
        }
        for number, name in filtered
    ]
    for edge in near_misses[:_MOST_NEAR_MISSES]:
        miss = Choice(edge.a, edge.b, Reason.DUPLICATE, (edge,))
        rows.append(_decision(miss, run_id=run_id, pools=pools, clips=clips) | {"verb": "keep", "reason": "near_miss"})
    common = {
        "run_id": run_id,
        "policy": json.dumps(asdict(policy), sort_keys=True),
        "policy_version": policy.version,
        "algorithm": ALGORITHM,
        "stmae_version": __version__,
    }
    for number, why in not_comparable.items():
        row = _one_side(clips[number], pools, "") | {
            "decision_id": decision_id(run_id, clips[number].row_id, "not_comparable"),
            "verb": "keep",
            "reason": "not_comparable",
            "level": "content",
            "detail": why,
        }
        rows.append(row)
    files.commit_table(
        folder / "meta" / "decisions" / f"{run_id}.parquet",
        [{**row, **common} for row in rows],
        DECISION_COLUMNS,
        point="decisions",
        order_by="verb, reason, row_id, other_set, other_row_id",
    )
    path = folder / "meta" / "groups.parquet"
    old = path if path.is_file() else source / "meta" / "groups.parquet"
    groups = {
        (row["group_id"], row["clip_id"], row["is_keeper"]): row
        for row in (files.read_table(old) if old.is_file() else [])
    }
    for row in _groups(choices, pools, clips):
        groups[row["group_id"], row["clip_id"], row["is_keeper"]] = row
    if not groups:
        return
    files.commit_table(
        path, groups.values(), GROUP_COLUMNS, point="groups", order_by="group_id, is_keeper DESC, clip_id"
    )


def has_news(
    folder: Path,
    near_misses: Sequence[Edge],
    not_comparable: Mapping[int, str],
    clips: Mapping[int, Clip],
    policy: Policy,
) -> bool:
    """Whether there is a near miss or a clip that cannot be compared of which no decision of this policy tells yet."""
    query = "SELECT reason, row_id, other_row_id FROM book WHERE verb = 'keep' AND policy_version = ?"
    tables = sorted((folder / "meta" / "decisions").glob("dedup-*.parquet"))
    rows = files.read_table(tables, query, [policy.version]) if tables else []
    told = {(row["reason"], row["row_id"], row["other_row_id"]) for row in rows}
    found = {("near_miss", clips[edge.a].row_id, clips[edge.b].row_id) for edge in near_misses[:_MOST_NEAR_MISSES]}
    return not found | {("not_comparable", clips[number].row_id, None) for number in not_comparable} <= told


def verdicts(
    choices: Sequence[Choice],
    filtered: Sequence[tuple[int, str]],
    *,
    run_id: str,
    pools: Sequence[Pool],
    clips: Mapping[int, Clip],
) -> list[Verdict]:
    """One verdict for each clip that goes: by its filter, or by its strictest choice; choices come strictest first."""
    found: dict[int, Verdict] = {}
    for number, name in filtered:
        row_id = clips[number].row_id
        found[number] = Verdict(
            row_id, Reason.FILTERED, decision_id(run_id, row_id, f"filter {name}"), None, f"filter {name}"
        )
    for choice in choices:
        clip, other = clips[choice.number], clips[choice.other]
        if choice.number not in found:
            level = choice.edges[0].level
            detail = f"{level}: {pools[other.pool].label} {other.clip_id}"
            found[choice.number] = Verdict(
                clip.row_id, choice.reason, decision_id(run_id, clip.row_id, other.row_id), other.clip_id, detail
            )
    return list(found.values())


def decision_id(run_id: str, row_id: str, other: str) -> str:
    """First 32 hex of sha256(run, row, other): the ledger names the decision by it."""
    return hashlib.sha256(f"{run_id}\0{row_id}\0{other}".encode()).hexdigest()[:32]


def _decision(choice: Choice, *, run_id: str, pools: Sequence[Pool], clips: Mapping[int, Clip]) -> dict[str, Any]:
    clip, other = clips[choice.number], clips[choice.other]
    first = choice.edges[0]
    seen = next((edge for edge in choice.edges if edge.level == "content"), None)
    timed = next((edge for edge in choice.edges if edge.overlap_ms is not None), first)
    row = {
        "decision_id": decision_id(run_id, clip.row_id, other.row_id),
        **_one_side(clip, pools, ""),
        **_one_side(other, pools, "other_"),
        "verb": "drop",
        "reason": str(choice.reason),
        "level": first.level,
        "levels": [edge.level for edge in choice.edges],
        "overlap_ms": timed.overlap_ms,
        "iou": timed.iou,
        "detail": f"{first.level}: {pools[other.pool].label} {other.clip_id} stays",
    }
    if seen is not None:
        told = json.loads(seen.evidence or "{}")
        # Evidence is told from a to b; a decision is told from the clip that goes.
        is_turned = seen.a != choice.number
        ours, theirs = ("other_", "") if is_turned else ("", "other_")
        row |= {
            "offset_ms": -(seen.offset_ms or 0) if is_turned else seen.offset_ms,
            "distance_bits": seen.distance,
            "min_distance_bits": told.get("min_bits"),
            "view": told.get(f"{ours}view"),
            "other_view": told.get(f"{theirs}view"),
            "stretch_ms": told.get("stretch_ms"),
            "num_near_frames": told.get("num_near"),
            "num_skipped_frames": told.get("num_skipped"),
            "share": told.get(f"{ours}share"),
            "other_share": told.get(f"{theirs}share"),
            "threshold": told.get("threshold"),
            "frames": [
                {
                    "time_ms": frame[f"{ours}time_ms"],
                    "other_time_ms": frame[f"{theirs}time_ms"],
                    "distance": frame["distance"],
                    "hash": frame[f"{ours}hash"],
                    "other_hash": frame[f"{theirs}hash"],
                }
                for frame in told.get("frames", [])
            ],
        }
    return row


def _one_side(clip: Clip, pools: Sequence[Pool], prefix: str) -> dict[str, Any]:
    pool = pools[clip.pool]
    row = {
        name: getattr(clip, name) for name in ("clip_id", "row_id", "release", "source_sha256", "start_ms", "end_ms")
    }
    row["split"] = None if pool.reference is None else pool.reference.split
    named = {f"{prefix}{name}": value for name, value in row.items()}
    return named | {f"{prefix}set" if prefix else "set_name": pool.set_name}


def _groups(choices: Sequence[Choice], pools: Sequence[Pool], clips: Mapping[int, Clip]) -> list[dict[str, Any]]:
    rows = []
    for choice in choices:
        keeper = clips[choice.other]
        group = hashlib.sha256(f"{pools[keeper.pool].label}\0{keeper.row_id}".encode()).hexdigest()[:16]
        edge = choice.edges[0]
        score = 1.0 if edge.distance is None else round(1 - edge.distance / 256, 6)
        rows.append(
            {
                "group_id": group,
                "kind": edge.level,
                "clip_id": clips[choice.number].clip_id,
                "score": score,
                "is_keeper": False,
            }
        )
        rows.append({"group_id": group, "kind": edge.level, "clip_id": keeper.clip_id, "score": 1.0, "is_keeper": True})
    return rows
