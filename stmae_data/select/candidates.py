"""Clips that a selection may choose from, and what they are chosen by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.catalog import locked_select
from stmae_data.errors import SelectionError
from stmae_data.records import SetRef
from stmae_data.shards import ShardSet, selected_ids

__all__ = ["Candidate", "candidates", "first_of_each", "labels_of", "meeting", "selection_exists", "synonyms_of"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A written clip; `seconds` of stored video, `label` None where it has none."""

    clip_id: str
    seconds: float
    label: str | None
    tags: tuple[str, ...]
    title: str


def candidates(workspace: Path, found: ShardSet, reference: SetRef) -> list[Candidate]:
    """The written clips a reference names, by clip id.

    Raises:
        SelectionError: its selection is missing, damaged or was made from another state of the set.
    """
    query = """SELECT clip_id, coalesce(stored_seconds, 0) AS seconds, coalesce(title, '') AS title,
                      [a.label_raw FOR a IN annotations IF a.label_raw IS NOT NULL][1] AS label, [t.tag FOR t IN tags] AS tags
               FROM book WHERE outcome = 'written' ORDER BY clip_id"""
    rows = files.read_table(found.ledgers(reference.split), query)
    if selection_exists(workspace, reference):
        book = workspace / "selections" / f"{reference.selection}.parquet"
        description = files.read_json(book.with_suffix(".json"))
        said = {parent["name"]: parent["digest"] for parent in description["parents"]}
        if said.get(found.name) != found.digest:
            raise SelectionError(
                f"Selection {reference.selection} was made from another state of {found.name} (digest {str(said.get(found.name))[:12]}, "
                f"now {found.digest[:12]}); make it again under a new name: stmae-data select."
            )
        chosen = set(selected_ids(book, description))
        rows = [row for row in rows if row["clip_id"] in chosen]
    return [
        Candidate(
            row["clip_id"], row["seconds"], row["label"], tuple(tag for tag in row["tags"] or () if tag), row["title"]
        )
        for row in rows
    ]


def meeting(workspace: Path, found: ShardSet, where: str, clips: Sequence[Candidate]) -> list[Candidate]:
    """Clips that meet the condition. Whatever the text returns, only clips of the source can be chosen."""
    # On lines of its own, so that a comment at its end closes nothing of ours.
    answer = locked_select(workspace, f"SELECT clip_id FROM written WHERE (\n{where}\n)", sets=[found.name])
    chosen = {row[0] for row in answer.rows}
    return [clip for clip in clips if clip.clip_id in chosen]


def synonyms_of(found: ShardSet) -> dict[str, str]:
    """Other spellings of the set's labels, from the manifests it was made of."""
    sources = files.read_json(found.folder / "meta" / "set.json").get("sources", [])
    return {old: new for source in sources for old, new in source.get("synonyms", {}).items()}


def labels_of(found: ShardSet) -> list[str]:
    """Class names of a set, in order.

    Raises:
        SelectionError: it has none.
    """
    query = "SELECT DISTINCT unnest([a.label_raw FOR a IN annotations IF a.label_raw IS NOT NULL]) AS label FROM book ORDER BY ALL"
    labels = [row["label"] for row in files.read_table(found.ledgers(), query)]
    if not labels:
        raise SelectionError(f"Set {found.name} has no class names to match hashtags with; name a labelled set.")
    return labels


def first_of_each(
    clips: Sequence[Candidate], key: Callable[[Candidate], Any], most: Callable[[Any], int]
) -> list[Candidate]:
    """The first clips of each key, in order; a clip whose key is None is left out."""
    taken: dict[Any, int] = defaultdict(int)
    kept = []
    for clip in clips:
        kind = key(clip)
        if kind is not None and taken[kind] < most(kind):
            taken[kind] += 1
            kept.append(clip)
    return kept


def selection_exists(workspace: Path, reference: SetRef) -> bool:
    """Whether a reference names a selection, which then stands.

    Raises:
        SelectionError: it names one that does not stand.
    """
    if reference.selection is None:
        return False
    if not (workspace / "selections" / f"{reference.selection}.json").is_file():
        raise SelectionError(
            f"There is no selection {reference.selection!r} in {workspace}; make it: stmae-data select {reference.selection} --from {reference.set_name}"
        )
    return True
