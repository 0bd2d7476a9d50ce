"""Annotations on one side, files on the other, joined by a name; and the count of what each side lacks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stmae_data.errors import SourceError
from stmae_data.manifest import Manifest
from stmae_data.records import Annotation, SourceRow
from stmae_data.sources.labels import LabelBook
from stmae_data.sources.listing import Entry, SourceListing, folder_split, source_uri, wanted_splits

__all__ = ["Named", "Tally", "join_by_name"]


@dataclass(slots=True)
class Tally:
    """Distinct clips by split and label: annotated, of these present, of these replaced by a later file, and present without an annotation."""

    annotated: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    present: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    replaced: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    unannotated: Counter[tuple[str, str | None]] = field(default_factory=Counter)

    def lines(self, manifest: Manifest) -> list[dict[str, Any]]:
        """One line per split and label, splits in the manifest's order, the unlabelled first."""
        order = {split.name: at for at, split in enumerate(manifest.splits)}
        keys = sorted(self.annotated.keys() | self.unannotated.keys(), key=lambda each: (order[each[0]], each[1] or ""))
        return [
            {
                "split": split,
                "label": label,
                "annotated": self.annotated[(split, label)],
                "present": self.present[(split, label)],
                "missing": self.annotated[(split, label)] - self.present[(split, label)],
                "replaced": self.replaced[(split, label)],
                "unannotated": self.unannotated[(split, label)],
            }
            for split, label in keys
        ]


@dataclass(slots=True)
class Named:
    """What the annotations of a release say of one name: an annotation per split, and text for the sample."""

    annotations: list[Annotation] = field(default_factory=list)
    text: str | None = None


def join_by_name(
    manifest: Manifest,
    entries: Iterable[Entry],
    *,
    known: Mapping[str, Named],
    name_of: Callable[[Entry], str | None],
    clip_id_of: Callable[[str], str],
    book: LabelBook,
    platform: str,
    media_kind: str,
    listing: SourceListing,
    split_of: Callable[[Entry], str | None] | None = None,
    splits: Sequence[str] | None,
    classes: Collection[str] | None,
) -> SourceListing:
    """Rows for files whose name is all their identity.

    Args:
        known: annotations by name; more than one split may name a file.
        name_of: the name a file goes by, None for files that are no clips.
        clip_id_of: the clip id of a name.
        split_of: the split a file belongs to by its place, its folders unless said.

    Raises:
        SourceError: no file belongs to any split.
    """
    wanted, chosen = wanted_splits(manifest, splits), book.wanted(classes)
    tally = Tally()
    seen: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        name = name_of(entry)
        if name is None:
            listing.skipped["other_file"] += 1
            continue
        standing = split_of(entry) if split_of is not None else folder_split(manifest, entry.folders)
        found = known.get(name)
        if found is not None:
            annotations = sorted(found.annotations, key=lambda each: each.split != standing)
        elif standing is None and len(manifest.splits) > 1:
            listing.skipped["no_split"] += 1
            continue
        else:
            annotations = [book.annotation(None, standing or manifest.splits[0].name)]
        split = annotations[0].split
        if split not in wanted:
            listing.skipped["other_split"] += 1
            continue
        if chosen is not None and not any(each.label_slug in chosen for each in annotations):
            continue
        if found is None:
            tally.unannotated[(split, None)] += 1
        seen[name].update(each.split for each in annotations)
        listing.rows.append(
            SourceRow(
                split=split,
                source_uri=source_uri(entry.path),
                source_member=entry.member,
                clip_id=clip_id_of(name),
                media_kind=media_kind,
                platform=platform,
                platform_id=name,
                source_bytes=entry.size if entry.kind == "file" else None,
                annotations=tuple(annotations),
                problem=entry.problem,
                web={"title": found.text} if found is not None and found.text else {},
            )
        )
    if not listing.rows and listing.skipped["no_split"]:
        raise SourceError(
            f"{listing.skipped['no_split']} files of {manifest.name} are in no annotation and no folder names their split; give the "
            f"tables with --annotations, or keep the files in folders called {', '.join(each.name for each in manifest.splits)}."
        )
    for name, named in known.items():
        for annotation in named.annotations:
            if annotation.split in wanted and (chosen is None or annotation.label_slug in chosen):
                key = (annotation.split, annotation.label_raw)
                tally.annotated[key] += 1
                tally.present[key] += annotation.split in seen.get(name, ())
    listing.reconciliation = tally.lines(manifest)
    return listing
