"""Something-Something V2: numbered webm clips, a JSON file per split, templates as classes.

The labels come apart from the videos, as `train.json` or under the older `something-something-v2-train.json`; test labels stand in
`test-answers.csv`. The videos are read from a folder or from the pieces of their archive (`20bn-something-something-v2-00`, …).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from stmae_data.errors import SourceError
from stmae_data.files import sha256_file
from stmae_data.manifest import Manifest, is_remote
from stmae_data.sources.archives import expand
from stmae_data.sources.join import Named, join_by_name
from stmae_data.sources.labels import LabelBook
from stmae_data.sources.listing import VIDEO_SUFFIXES, Entry, SourceListing, matching_split, walk
from stmae_data.sources.tables import load_json, read_text

__all__ = ["class_of_template", "rows"]

_TABLE = re.compile(r"(?:something-something-v2-)?(?P<what>labels|train|validation|test|test-answers)\.(?:json|csv)")
_NUMBER = re.compile(r"\d{1,12}")


def class_of_template(template: str) -> str:
    """The class a template means: `Holding [something]` is the class `Holding something`."""
    return template.replace("[", "").replace("]", "").strip()


def rows(
    manifest: Manifest,
    *,
    roots: Sequence[Path],
    annotations: Sequence[Path] = (),
    splits: Sequence[str] | None = None,
    classes: Collection[str] | None = None,
) -> SourceListing:
    """List the clips found below the roots.

    Raises:
        SourceError: a root or table is missing or unreadable, or no table is there.
    """
    listing = SourceListing()
    entries = list(expand(walk(roots, skipped=listing.skipped), listing))
    tables = _tables(manifest, entries, annotations)
    book = LabelBook(manifest, ranked=_class_list(tables))
    known: dict[str, Named] = {}
    for what, path in tables:
        digest = sha256_file(path)
        for number, (name, template, text, placeholders) in enumerate(_records(what, path), start=1):
            label = class_of_template(template) if template is not None else None
            split = matching_split(manifest, what.removesuffix("-answers"))
            if split is None:
                continue
            annotation = book.annotation(
                label,
                split,
                template=template if template is not None and "[" in template else None,
                placeholders=placeholders,
                row_number=number,
                annotation_sha256=digest,
            )
            named = known.setdefault(name, Named())
            # Answers complete the bare test list, whichever was read first.
            others = [each for each in named.annotations if each.split != split]
            same = [each for each in named.annotations if each.split == split and each.label_slug is not None]
            named.annotations = [*others, *(same or [annotation])]
            named.text = named.text or text
    return join_by_name(
        manifest,
        entries,
        known=known,
        name_of=_name,
        clip_id_of="ssv2_{}".format,
        book=book,
        platform="ssv2",
        media_kind="video",
        listing=listing,
        splits=splits,
        classes=classes,
    )


def _name(entry: Entry) -> str | None:
    stem, dot, _ = entry.name.partition(".")
    return stem if dot and _NUMBER.fullmatch(stem) and entry.suffix in VIDEO_SUFFIXES else None


def _tables(manifest: Manifest, entries: Iterable[Entry], given: Sequence[Path]) -> list[tuple[str, Path]]:
    """What each table is, by its name, and where it lies."""
    places = list(given) or [
        Path(each) for split in manifest.splits for each in split.annotations if not is_remote(each)
    ]
    if not places:
        places = [source for entry in entries if _TABLE.fullmatch(entry.name) and (source := entry.file) is not None]
    found = []
    for path in places:
        match = _TABLE.fullmatch(path.name)
        if match is None:
            raise SourceError(
                f"{path} is no table of {manifest.name} by its name; wanted labels.json, train.json, validation.json, test.json or test-answers.csv."
            )
        found.append((match["what"], path))
    if not any(what != "labels" for what, _ in found):
        raise SourceError(
            f"{manifest.name} has no tables here; put train.json and validation.json of its label archive below --from, or name them with --annotations."
        )
    return sorted(found)


def _class_list(tables: Iterable[tuple[str, Path]]) -> tuple[str, ...]:
    """Classes in the order of `labels.json`, which maps a template without brackets to its index."""
    for what, path in tables:
        if what == "labels":
            value = load_json(path)
            if not isinstance(value, dict) or not all(str(index).isdecimal() for index in value.values()):
                raise SourceError(
                    f'{path} does not map labels to numbers; wanted {{"Approaching something…": "0", …}}.'
                )
            return tuple(sorted(value, key=lambda label: int(value[label])))
    return ()


def _records(what: str, path: Path) -> Iterator[tuple[str, str | None, str | None, tuple[str, ...] | None]]:
    """(id, template or class, sentence, placeholders) of each row of one table."""
    if what == "labels":
        return
    if path.suffix == ".csv":
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            name, separator, label = line.partition(";")
            if not separator or not _NUMBER.fullmatch(name.strip()):
                raise SourceError(f"Line {number} of {path} is {line[:80]!r}; wanted `id;label`.")
            yield name.strip(), label.strip(), None, None
        return
    value = load_json(path)
    if not isinstance(value, list):
        raise SourceError(f"{path} is not a list of clips; wanted the official JSON with `id` and `template`.")
    for number, each in enumerate(value, start=1):
        if not isinstance(each, dict) or not _NUMBER.fullmatch(str(each.get("id"))):
            raise SourceError(f"Entry {number} of {path} has no numeric `id`; restore the file from its source.")
        yield str(each["id"]), _text(each, "template"), _text(each, "label"), _texts(each.get("placeholders"))


def _text(entry: dict[str, Any], key: str) -> str | None:
    value = entry.get(key)
    return value.strip() if isinstance(value, str) and value.strip() else None


def _texts(value: Any) -> tuple[str, ...] | None:
    return tuple(str(each) for each in value) if isinstance(value, list) else None
