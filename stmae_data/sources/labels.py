"""The classes of a release: one spelling, one index for each."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from stmae_data.errors import SourceError
from stmae_data.manifest import Manifest, label_slug
from stmae_data.records import Annotation
from stmae_data.sources.tables import TableClip

__all__ = ["LabelBook"]


class LabelBook:
    """Finds the class a text means. The index is the place in the manifest's list, else the rank among the sorted train labels."""

    def __init__(
        self,
        manifest: Manifest,
        seen: Iterable[tuple[str | None, str]] = (),
        *,
        ranked: Sequence[str] = (),
    ) -> None:
        """`seen` are (label, split) of all rows of all tables; `ranked` are classes in the release's own order, which wins."""
        self.manifest = manifest
        self.slugs: dict[str, str] = {}
        by_split: dict[str, set[str]] = {}
        for label, split in seen:
            if label is not None:
                by_split.setdefault(split, set()).add(label)
        everything = set().union(*by_split.values()) if by_split else set()
        # Evaluation tables alone still give the full ranks: the releases have every class in every labelled split.
        ranked = ranked or manifest.labels or tuple(sorted(by_split.get("train") or everything))
        self.index: dict[str, int] = {}
        self.names: dict[str, str] = {}
        for label in ranked:
            slug = self.slug(label)
            self.names.setdefault(slug, label)
            self.index.setdefault(slug, len(self.index))
        for label in sorted(everything):
            self.names.setdefault(self.slug(label), label)

    def slug(self, label: str) -> str:
        """The one spelling of a label, synonyms resolved."""
        found = self.slugs.get(label)
        if found is None:
            found = label_slug(label)
            found = label_slug(self.manifest.label_synonyms.get(found, found))
            self.slugs[label] = found
        return found

    def annotate(self, clip: TableClip, split: str, annotation_sha256: str) -> Annotation:
        """What a table row says, as an annotation of this release."""
        label = clip.label
        if label is None and clip.label_index is not None and clip.label_index < len(self.manifest.labels):
            label = self.manifest.labels[clip.label_index]
        return self.annotation(
            label, split, is_cc=clip.is_cc, row_number=clip.row_number, annotation_sha256=annotation_sha256
        )

    def annotation(
        self,
        label: str | None,
        split: str,
        **more: Any,
    ) -> Annotation:
        """An annotation of this release, `more` being further fields; a label outside its classes has no index."""
        slug = self.slug(label) if label is not None else None
        return Annotation(
            dataset=self.manifest.name,
            release=self.manifest.release,
            split=split,
            label_raw=label,
            label_slug=slug,
            label_index=self.index.get(slug) if slug is not None else None,
            **more,
        )

    def of_folder(self, folder: str) -> str | None:
        """The class a folder is named after, None when it is none of this release."""
        return self.names.get(self.slug(folder))

    def wanted(self, classes: Collection[str] | None) -> frozenset[str] | None:
        """The slugs of classes asked for, None for all.

        Raises:
            SourceError: the release has no such class.
        """
        if classes is None:
            return None
        slugs = {self.slug(each): each for each in classes}
        for slug, text in slugs.items():
            if slug not in self.names:
                near = difflib.get_close_matches(slug, self.names, n=1, cutoff=0.5)
                hint = f" (did you mean {self.names[near[0]]!r}?)" if near else ""
                raise SourceError(
                    f"{self.manifest.name} has no class {text!r}{hint}; see its labels in the manifest or tables."
                )
        return frozenset(slugs)
