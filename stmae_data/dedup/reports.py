"""What dedup and leaks say: values that the command line prints and `--json` repeats (shapes of FORMATS)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stmae_data.dedup.content import ContentLog
from stmae_data.records import LEVELS
from stmae_data.rewrite import RewriteReport

__all__ = ["DedupReport", "FoundPair", "LeakCounts", "LeakReport"]

Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True, slots=True)
class FoundPair:
    """Two clips that are the same at one level. `a` is the training clip, or of two training clips the one that goes."""

    a: str
    b: str
    level: str
    offset_seconds: float | None
    distance: float | None
    keep: str
    a_label: str
    b_label: str
    frames: tuple[tuple[int, int, int], ...] = ()
    """Of the content level, the nearest frames: (milliseconds in a, milliseconds in b, distance in bits)."""
    views: tuple[str, str] | None = None
    """Of the content level, the view of a and of b that agreed: full, bars_removed, mirrored."""
    sets: tuple[str | None, str | None] = (None, None)
    """The sets that store a and b; None for a row of a table."""

    def as_json(self) -> dict[str, Any]:
        """One entry of `pairs`."""
        return {name: getattr(self, name) for name in ("a", "b", "level", "offset_seconds", "distance", "keep")}


@dataclass(frozen=True, slots=True)
class DedupReport:
    """What was found and what became of it.

    `not_comparable` are clips that the level content can say nothing about, each with the reason; `across` counts clips that two training splits share by id, which is no reason to lose them; `sets` are the sets as rewritten.
    """

    pairs: tuple[FoundPair, ...]
    num_groups: int
    num_going: int
    not_comparable: Mapping[str, str]
    is_applied: bool
    policy: str
    sets: tuple[RewriteReport, ...] = ()
    across: tuple[tuple[str, str, int], ...] = ()
    logs: tuple[ContentLog, ...] = ()
    near_misses: tuple[FoundPair, ...] = ()
    filtered: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(training split, name of the filter) to the number of clips that it takes."""

    @property
    def would_act(self) -> bool:
        """Whether any clip goes, or would go."""
        return self.num_going > 0

    def as_json(self) -> dict[str, Any]:
        """The `dedup` shape of FORMATS."""
        return {
            "pairs": [pair.as_json() for pair in self.pairs],
            "groups": self.num_groups,
            "not_comparable": sorted(self.not_comparable),
            "applied": self.is_applied,
            "policy": self.policy,
        }

    def as_table(self) -> Table:
        """Header and rows for a person."""
        clips: dict[tuple[str, str, str], tuple[set[str], set[str]]] = {}
        for pair in self.pairs:
            ours, theirs = clips.setdefault((pair.a_label, pair.b_label, pair.level), (set(), set()))
            ours.add(pair.a)
            theirs.add(pair.b)
        rows = [
            [a, b, level, str(len(clips[a, b, level][0])), str(len(clips[a, b, level][1]))]
            for a, b, level in sorted(clips, key=lambda key: (key[0], key[1], LEVELS.index(key[2])))
        ]
        rows += [
            [label, f"filter {name}", "filtered", str(count), ""] for (label, name), count in self.filtered.items()
        ]
        rows += [[a, b, "id (both stay)", str(count), str(count)] for a, b, count in self.across]
        for why, count in sorted(Counter(self.not_comparable.values()).items()):
            rows.append([f"not comparable: {why}", "", "content", str(count), ""])
        crowded = sum(len(log.hot) for log in self.logs)
        if crowded:
            partly = sum(not bucket.is_exact for log in self.logs for bucket in log.hot)
            rows.append(["crowded hash buckets", f"{partly} compared in part", "content", str(crowded), ""])
        return ["in", "same as in", "level", "clips", "others"], rows

    def as_histogram(self) -> Table:
        """Header and rows: pairs of the level content by median distance, those that count and those that just do not."""
        kinds = [self.pairs, self.near_misses]
        bins = [Counter(int(each.distance // 8) for each in kind if each.distance is not None) for kind in kinds]
        rows = [
            [f"{8 * number} to {8 * number + 7}", *(str(found[number]) for found in bins)]
            for number in sorted(bins[0] | bins[1])
        ]
        return ["bits of 256", "same", "near misses"], rows

    def closing_line(self) -> str:
        """One sentence."""
        if not self.num_going:
            return "Nothing has to go: no duplicate, no leak and no filtered clip was found."
        if not self.is_applied:
            return f"{self.num_going} clips would go; nothing was written. Run it without --dry-run to apply."
        changed = ", ".join(f"{each.set_name} is version {each.version} ({each.digest[:12]})" for each in self.sets)
        return f"{self.num_going} clips went, with their evidence in meta/decisions; {changed}."


@dataclass(frozen=True, slots=True)
class LeakCounts:
    """What one training pool shares with one evaluation pool: level -> (training, evaluation) distinct rows, None where not comparable."""

    train: str
    evaluation: str
    levels: Mapping[str, tuple[int, int] | None]
    num_not_comparable: int
    num_evaluation: int
    """Rows of the evaluation pool, shared or not."""

    def as_json(self) -> dict[str, Any]:
        """One entry of `pairs`."""
        counts = {
            level: None if count is None else {"train": count[0], "eval": count[1]}
            for level, count in self.levels.items()
        }
        return {"train": self.train, "eval": self.evaluation, **counts, "not_comparable": self.num_not_comparable}


@dataclass(frozen=True, slots=True)
class LeakReport:
    """The matrix of leaks; `fixed` is what became of them where that was asked for."""

    pairs: tuple[LeakCounts, ...]
    fixed: DedupReport | None = None

    @property
    def has_findings(self) -> bool:
        """Whether anything is shared at any level."""
        return any(count is not None and count[0] for pair in self.pairs for count in pair.levels.values())

    def as_json(self) -> dict[str, Any]:
        """The `leaks` shape of FORMATS."""
        return {"pairs": [pair.as_json() for pair in self.pairs]}

    def as_table(self) -> Table:
        """Header and rows for a person: training clips / evaluation clips per level, - where a level cannot be compared."""
        rows = []
        for pair in self.pairs:
            cells = [
                "-" if count is None else f"{count[0]} / {count[1]}" for count in (pair.levels[each] for each in LEVELS)
            ]
            rows.append([pair.train, pair.evaluation, *cells, str(pair.num_not_comparable)])
        return ["train", "eval", *LEVELS, "not comparable"], rows

    def closing_line(self) -> str:
        """What each pair shares, as papers state it: how many clips, with an evaluation set of what size."""
        told, unknown = [], []
        for pair in self.pairs:
            found = {level: count for level, count in pair.levels.items() if count is not None and count[0]}
            if found:
                level = next(each for each in ("video", *LEVELS) if each in found)
                ours, theirs = found[level]
                told.append(
                    f"{pair.train} has {_clips(ours)} duplicated in {pair.evaluation}: {theirs} of its {_clips(pair.num_evaluation)} (level {level})"
                )
            elif not any(count is not None for count in pair.levels.values()):
                unknown.append(
                    f"{pair.train} and {pair.evaluation} could not be compared at any level, which proves nothing"
                )
        if not told and len(unknown) < len(self.pairs):
            told.append("No training clip was found in an evaluation set at any level that could be compared")
        return "; ".join((*told, *unknown)) + "."


def _clips(count: int) -> str:
    return f"{count} {'clip' if count == 1 else 'clips'}"
