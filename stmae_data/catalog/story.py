"""The story of one clip across all sets and runs, and what differs between two sets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.catalog.books import find_books
from stmae_data.catalog.summary import opened
from stmae_data.errors import SelectionError, SetError, UsageError
from stmae_data.records import SetRef

__all__ = ["ClipStory", "SetDiff", "diff", "show_clip"]


@dataclass(frozen=True, slots=True)
class ClipStory:
    """Everything the workspace remembers about one clip.

    `rows`: its ledger rows in every set (source, bytes, outcome, place), nulls left out. `decisions` and `removals`: what was decided about
    it, and about others because of it. `groups`: near-duplicate groups it is in. `selections`: names of those that hold it. `runs`:
    training runs that read it; `is_same_data` is False where the set has changed since, so that the run may have read it or not.
    """

    clip_id: str
    rows: tuple[dict[str, Any], ...]
    decisions: tuple[dict[str, Any], ...]
    removals: tuple[dict[str, Any], ...]
    groups: tuple[dict[str, Any], ...]
    selections: tuple[str, ...]
    runs: tuple[dict[str, Any], ...]

    def as_json(self) -> dict[str, Any]:
        """The story as JSON values."""
        return dict(json.loads(json.dumps(asdict(self), default=str)))

    def as_table(self) -> tuple[list[str], list[list[Any]]]:
        """Column names and rows in the order in which things happened."""
        told: list[list[Any]] = []
        for row in self.rows:
            where = f"{row['set_name']}:{row.get('split')}"
            told.append(["source", where, _source(row)])
            told += [["label", where, note["label_raw"]] for note in row.get("annotations", []) if note["label_raw"]]
            if "num_frames" in row:
                told.append(["measured", where, _measured(row)])
            told.append(["outcome", where, _outcome(row)])
            if "place" in row:
                how = f", {row['encode_mode']}" if "encode_mode" in row else ""
                told.append(["stored", where, f"{row['place']}, {row.get('stored_bytes')} bytes{how}"])
        for decision in self.decisions:
            other = f"{decision.get('other_set', '')} {decision.get('other_clip_id', '')}".strip()
            what = [decision.get(key) for key in ("verb", "clip_id", "reason", "level")]
            told.append(
                ["decision", decision["set_name"], " ".join(str(each) for each in what if each) + f" ({other})"]
            )
        told += [["removed", each["set_name"], each.get("reason", "")] for each in self.removals]
        told += [["group", each["set_name"], f"{each['group_id']}: {each['clip_id']}"] for each in self.groups]
        told += [["selection", "", name] for name in self.selections]
        for run in self.runs:
            note = "read it" if run["is_same_data"] else "read another state of the set, this clip perhaps"
            told.append(["run", f"{run['set']}:{run['split']}", f"{run['run']} ({run['role']}) {note}"])
        return ["what", "where", "detail"], told


def _source(row: dict[str, Any]) -> str:
    member = f" :: {row['source_member']}" if "source_member" in row else ""
    sha256 = f", sha256 {row['source_sha256'][:16]}…" if "source_sha256" in row else ""
    return f"{row.get('source_uri')}{member}, {row.get('source_bytes', 'unknown')} bytes{sha256}"


def _measured(row: dict[str, Any]) -> str:
    codec = row.get("video_codec", row.get("container", ""))
    size = f"{codec} {row.get('width_px')}x{row.get('height_px')}".strip()
    if row.get("duration_seconds") is None:
        return size
    return f"{size}, {row['num_frames']} frames, {row['duration_seconds']:.2f} s, {row.get('fps', 0):.5g} fps"


def _outcome(row: dict[str, Any]) -> str:
    words = [row["outcome"], row.get("reason"), row.get("reason_detail")]
    if "duplicate_of" in row:
        words.append(f"of {row['duplicate_of']}")
    return " ".join(str(word) for word in [*words, *row.get("flags", [])] if word)


def show_clip(workspace: Path, clip_id: str) -> ClipStory:
    """Tell the story of one clip: source → bytes → outcomes → decisions → place in a shard → runs that read it.

    Raises:
        SelectionError: no set of the workspace knows the clip.
        SetError: the books of a set are damaged.
    """
    books = find_books(workspace)
    with opened(books) as connection:
        rows = _records(
            connection,
            "SELECT * FROM clip WHERE clip_id = ? OR duplicate_of = ? OR parent_clip_id = ? ORDER BY set_name, outcome = 'written' DESC, row_id",
            [clip_id] * 3,
        )
        decisions = _records(
            connection, "SELECT * FROM decision WHERE clip_id = ? OR other_clip_id = ? ORDER BY ALL", [clip_id] * 2
        )
        removals = _records(connection, "SELECT * FROM removed WHERE clip_id = ? ORDER BY ALL", [clip_id])
        groups = _records(
            connection,
            """SELECT * FROM group_member WHERE (set_name, group_id) IN
               (SELECT (set_name, group_id) FROM group_member WHERE clip_id = ?) ORDER BY ALL""",
            [clip_id],
        )
        near = []
        if not rows:
            near = connection.execute(
                "SELECT clip_id FROM clip WHERE clip_id IS NOT NULL ORDER BY jaro_winkler_similarity(clip_id, ?) DESC, 1 LIMIT 1",
                [clip_id],
            ).fetchall()
    if not rows and not decisions and not removals:
        hint = f" Did you mean {near[0][0]}?" if near else ""
        raise SelectionError(f"No set of {workspace} knows the clip {clip_id!r:.120}.{hint}")
    seals = {book.name: book.seal or {} for book in books}
    for row in rows:
        if row["outcome"] == "written":
            row["place"] = f"{row['shard']}.tar:{row.get('media_offset')}"
        row["set_version"] = seals[row["set_name"]].get("version")
    selections = _selections_with(workspace, clip_id)
    written = {
        (row["set_name"], row["split"]) for row in rows if row["outcome"] == "written" and row.get("clip_id") == clip_id
    }
    was_in = {row["set_name"] for row in [*rows, *removals]}
    return ClipStory(
        clip_id=clip_id,
        rows=tuple(rows),
        decisions=tuple(decisions),
        removals=tuple(removals),
        groups=tuple(groups),
        selections=tuple(sorted(selections)),
        runs=tuple(_runs_with(workspace, written, was_in, seals, set(selections.values()))),
    )


def _records(connection: Any, query: str, parameters: list[Any]) -> list[dict[str, Any]]:
    cursor = connection.execute(query, parameters)
    names = [column[0] for column in cursor.description]
    return [
        {name: value for name, value in zip(names, values, strict=True) if value is not None}
        for values in cursor.fetchall()
    ]


def _selections_with(workspace: Path, clip_id: str) -> dict[str, str | None]:
    """Selections that hold the clip: name -> digest."""
    found: dict[str, str | None] = {}
    folder = workspace / "selections"
    for path in sorted(folder.glob("*.parquet")) if folder.is_dir() else []:
        if path.name.startswith(files.TEMP_PREFIX):
            continue
        if files.read_table(path, "SELECT 1 FROM book WHERE clip_id = ? LIMIT 1", [clip_id]):
            described = path.with_suffix(".json")
            found[path.stem] = files.read_json(described).get("digest") if described.is_file() else None
    return found


def _runs_with(
    workspace: Path,
    written: set[tuple[str, str]],
    was_in: set[str],
    seals: dict[str, Any],
    selection_digests: set[str | None],
) -> list[dict[str, Any]]:
    """Runs whose data.json names a set and split that hold the clip, its selection included."""
    found = []
    runs = workspace / "runs"
    for path in sorted(runs.glob("*/data.json")) if runs.is_dir() else []:
        for entry in _entries(path):
            try:
                reference = SetRef.parse(str(entry["reference"]))
            except UsageError:
                continue  # foreign tars by pattern: nothing can be known about them
            name, split = reference.set_name, reference.split
            is_same = entry.get("set_digest") == seals.get(name, {}).get("digest")
            holds = (name, split) in written
            if entry.get("selection_digest") is not None:
                holds = holds and entry["selection_digest"] in selection_digests
            if holds if is_same else name in was_in:
                found.append(
                    {
                        "run": path.parent.name,
                        "role": entry.get("role"),
                        "set": name,
                        "split": split,
                        "set_digest": entry.get("set_digest"),
                        "set_version": entry.get("version"),
                        "is_same_data": is_same,
                    }
                )
    return found


def _entries(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's data.json: one per set reference it read."""
    document = files.read_json(path)
    lines = document.get("sets") if isinstance(document, dict) else None
    return [line for line in lines or [] if isinstance(line, dict) and "reference" in line]


@dataclass(frozen=True, slots=True)
class SetDiff:
    """What differs between two sets, by clip id over written samples.

    `only_a` and `only_b` are counts with up to `limit` examples in `examples`; `changed` are clips in both whose stored bytes differ;
    `left_because` counts why the clips only in `a` are not in `b` (`not planned` where `b` never heard of them). `by_class` and
    `by_source` (data set and release, else platform) are clips of `a` and `b` where these differ, the largest difference first, at most
    `limit`; `num_classes_apart` and `num_sources_apart` count them all. Every pair is (a, b).
    """

    a: str
    b: str
    only_a: int
    only_b: int
    both: int
    changed: int
    examples: dict[str, list[str]]
    left_because: dict[str, int]
    hours: tuple[float, float]
    classes: tuple[int, int]
    by_class: dict[str, tuple[int, int]]
    num_classes_apart: int
    by_source: dict[str, tuple[int, int]]
    num_sources_apart: int
    shards_shared: int
    recipe: dict[str, tuple[Any, Any]]
    versions: dict[str, tuple[Any, Any]]

    @property
    def is_same(self) -> bool:
        """Whether both hold the same clips with the same bytes."""
        return not (self.only_a or self.only_b or self.changed)

    def as_json(self) -> dict[str, Any]:
        """The difference as JSON values."""
        return {**dict(json.loads(json.dumps(asdict(self), default=str))), "is_same": self.is_same}

    def as_table(self) -> tuple[list[str], list[list[Any]]]:
        """Column names and rows."""
        rows: list[list[Any]] = [
            ["clips", self.both + self.only_a, self.both + self.only_b],
            ["  in the other too", self.both, self.both],
            ["    with other stored bytes", self.changed, self.changed],
            ["  not in the other", self.only_a, self.only_b],
            *([f"    there: {reason}", count, ""] for reason, count in self.left_because.items()),
            ["hours", *self.hours],
            ["classes", *self.classes],
            *([f"  {label}", *counts] for label, counts in self.by_class.items()),
            *_more("classes", self.num_classes_apart - len(self.by_class)),
            *([f"source {name}", *counts] for name, counts in self.by_source.items()),
            *_more("sources", self.num_sources_apart - len(self.by_source)),
            ["shards in both", self.shards_shared, self.shards_shared],
        ]
        rows += [[name, *values] for name, values in {**self.recipe, **self.versions}.items()]
        return ["what", self.a, self.b], rows


def _more(what: str, count: int) -> list[list[Any]]:
    return [[f"  … {count} more {what} differ", "", ""]] if count > 0 else []


def diff(workspace: Path, a: str, b: str, *, limit: int = 20) -> SetDiff:
    """Compare two sets, or two splits of sets (`k400:val`), clip by clip.

    Raises:
        SetError: a set or split is missing, or its books are damaged.
    """
    (name_a, split_a), (name_b, split_b) = _named(a), _named(b)
    books = find_books(workspace, {name_a, name_b})
    seals = {book.name: book.seal or {} for book in books}
    with opened(books) as connection:
        for side, name, split in (("a", name_a, split_a), ("b", name_b, split_b)):
            connection.execute(
                f"""CREATE TABLE side_{side} AS SELECT clip_id, outcome, reason, stored_sha256, annotations, platform,
                           coalesce(stored_seconds, duration_seconds, 0) AS seconds FROM clip
                    WHERE set_name = ? AND (? IS NULL OR split = ?) AND clip_id IS NOT NULL""",
                [name, split, split],
            )
            if split and not connection.execute(f"SELECT count(*) FROM side_{side}").fetchone()[0]:
                raise SetError(f"Set {name} has no split {split!r} with clips; see its splits: stmae-data stats {name}")
        connection.execute(
            """CREATE TABLE pair AS SELECT coalesce(l.clip_id, r.clip_id) AS clip_id, l.clip_id IS NOT NULL AS in_a,
                      r.clip_id IS NOT NULL AS in_b, l.stored_sha256 IS DISTINCT FROM r.stored_sha256 AS differs
               FROM (SELECT * FROM side_a WHERE outcome = 'written') l
               FULL JOIN (SELECT * FROM side_b WHERE outcome = 'written') r USING (clip_id)"""
        )
        parts = {"only_a": "in_a AND NOT in_b", "only_b": "in_b AND NOT in_a", "both": "in_a AND in_b"}
        parts["changed"] = "in_a AND in_b AND differs"
        counts = {
            part: connection.execute(f"SELECT count(*) FROM pair WHERE {where}").fetchone()[0]
            for part, where in parts.items()
        }
        examples = {
            part: [
                row[0]
                for row in connection.execute(
                    f"SELECT clip_id FROM pair WHERE {where} ORDER BY 1 LIMIT ?", [limit]
                ).fetchall()
            ]
            for part, where in parts.items()
            if part != "both"
        }
        left = connection.execute(
            """SELECT coalesce(why, 'not planned'), count(*) FROM
                 (SELECT pair.clip_id, min(side_b.reason) AS why FROM pair LEFT JOIN side_b USING (clip_id)
                  WHERE in_a AND NOT in_b GROUP BY ALL) GROUP BY ALL ORDER BY ALL"""
        ).fetchall()
        hours, classes = zip(*(_extent(connection, side) for side in ("a", "b")), strict=True)
        by_class, by_source = _apart(connection, _LABEL), _apart(connection, _SOURCE)
        shared = connection.execute(
            """SELECT count(*) FROM (SELECT DISTINCT sha256 FROM shard_file WHERE set_name = ? INTERSECT
               SELECT DISTINCT sha256 FROM shard_file WHERE set_name = ?)""",
            [name_a, name_b],
        ).fetchone()[0]
    return SetDiff(
        a=a,
        b=b,
        only_a=counts["only_a"],
        only_b=counts["only_b"],
        both=counts["both"],
        changed=counts["changed"],
        examples=examples,
        left_because=dict(left),
        hours=hours,
        classes=classes,
        by_class=dict(by_class[:limit]),
        num_classes_apart=len(by_class),
        by_source=dict(by_source[:limit]),
        num_sources_apart=len(by_source),
        shards_shared=shared,
        recipe=_differing(seals[name_a].get("recipe", {}), seals[name_b].get("recipe", {})),
        versions=_differing(seals[name_a].get("versions", {}), seals[name_b].get("versions", {})),
    )


def _extent(connection: Any, side: str) -> tuple[float, int]:
    """Hours and distinct labels of one side."""
    seconds, labels = connection.execute(
        f"""SELECT (SELECT coalesce(sum(seconds), 0) FROM side_{side} WHERE outcome = 'written'), count(DISTINCT note.label_raw)
            FROM (SELECT unnest(annotations) AS note FROM side_{side} WHERE outcome = 'written')"""
    ).fetchone()
    return round(float(seconds) / 3600, 6), int(labels)


_LABEL = "[a.label_raw FOR a IN annotations IF a.label_raw IS NOT NULL][1]"
_SOURCE = "coalesce(nullif(concat_ws(' ', annotations[1].dataset, annotations[1].release), ''), platform)"


def _apart(connection: Any, what: str) -> list[tuple[str, tuple[int, int]]]:
    """Values of an expression over a clip that the two sides have in different numbers, the largest difference first."""
    rows = connection.execute(
        f"""SELECT value, sum(a)::BIGINT, sum(b)::BIGINT FROM
              (SELECT {what} AS value, 1 AS a, 0 AS b FROM side_a WHERE outcome = 'written' UNION ALL
               SELECT {what}, 0, 1 FROM side_b WHERE outcome = 'written')
            WHERE value IS NOT NULL GROUP BY value HAVING sum(a) != sum(b) ORDER BY abs(sum(a) - sum(b)) DESC, value"""
    ).fetchall()
    return [(value, (a, b)) for value, a, b in rows]


def _named(text: str) -> tuple[str, str | None]:
    name, _, split = text.partition(":")
    return name, split or None


def _differing(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, with both values."""
    return {key: (a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)}
