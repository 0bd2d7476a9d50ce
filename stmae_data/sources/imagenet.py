"""ImageNet-1k: the official tars as they are, or folders of images; classes are synsets.

A train image carries its synset in its name and its folder. A validation image carries neither: its class comes from a synset folder,
or from a list (`name index`, `name synset`, Kaggle's `LOC_val_solution.csv`), or from the devkit's ground truth with its `meta.mat`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from stmae_data.errors import SourceError
from stmae_data.files import sha256_file
from stmae_data.manifest import Manifest, is_remote
from stmae_data.records import Annotation
from stmae_data.sources.archives import expand
from stmae_data.sources.join import Named, join_by_name
from stmae_data.sources.labels import LabelBook
from stmae_data.sources.listing import Entry, SourceListing, matching_split, walk
from stmae_data.sources.tables import read_text

__all__ = ["read_validation_list", "rows"]

_IMAGES = frozenset({"jpeg", "jpg", "png"})
_SYNSET = re.compile(r"n\d{8}")
_TRAIN = re.compile(r"(?P<synset>n\d{8})_\d+")
_OTHER = re.compile(r"ILSVRC2012_(?P<split>val|test)_\d{8}")
_LINE = re.compile(r"(?P<name>ILSVRC2012_val_\d{8})(?:\.\w+)?[\s,]+(?P<label>n\d{8}|\d{1,4})(?:[\s,].*)?")
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def rows(
    manifest: Manifest,
    *,
    roots: Sequence[Path],
    annotations: Sequence[Path] = (),
    splits: Sequence[str] | None = None,
    classes: Collection[str] | None = None,
) -> SourceListing:
    """List the images found below the roots. Without a list of classes the validation images have none, and a note says so.

    Raises:
        SourceError: a root or list is missing or unreadable.
    """
    listing = SourceListing()
    entries = list(expand(walk(roots, skipped=listing.skipped), listing))
    synsets = {
        match[0] for entry in entries if (match := _SYNSET.match(entry.name) or _SYNSET.match(entry.folders[-1]))
    }
    book = LabelBook(manifest, ((synset, "train") for synset in synsets))
    known: dict[str, Named] = {}
    for path in _lists(manifest, entries, annotations):
        digest = sha256_file(path)
        for image, label in read_validation_list(path, synsets=manifest.labels).items():
            known[image] = Named([_annotation(manifest, book, label, "val", digest)])
    for entry in entries:
        name = _name(entry)
        synset = _synset(entry, name) if name is not None else None
        # A list says more than a folder: whoever sorted the files into folders started from one.
        if name is not None and synset is not None and name not in known:
            known[name] = Named([_annotation(manifest, book, synset, _split(name), None)])
    listing = join_by_name(
        manifest,
        entries,
        known=known,
        name_of=_name,
        clip_id_of=str,
        split_of=lambda entry: matching_split(manifest, _split(_name(entry) or "")),
        book=book,
        platform="imagenet",
        media_kind="image",
        listing=listing,
        splits=splits,
        classes=classes,
    )
    unlabelled = sum(row.split == "val" and row.annotations[0].label_raw is None for row in listing.rows)
    if unlabelled:
        listing.notes.append(
            f"{unlabelled} validation images have no class; name a list of them with --annotations (name and index or synset in each line)."
        )
    return listing


def read_validation_list(path: Path, *, synsets: Sequence[str]) -> dict[str, str]:
    """Synset by validation image name, from a list or from the devkit's ground truth.

    Args:
        path: lines of a name and an index into `synsets`, or a name and a synset; or the ground truth file, whose numbers are
            the devkit's own and need its `meta.mat` beside it.
        synsets: all synsets, sorted.

    Raises:
        SourceError: a line names no class, or `meta.mat` is not there.
    """
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if path.name == _TRUTH:
        of_number = _devkit_synsets(path)
        try:
            return {f"ILSVRC2012_val_{at:08d}": of_number[int(line)] for at, line in enumerate(lines, start=1)}
        except (KeyError, ValueError) as error:
            raise SourceError(
                f"{path} holds {error}, which is no class number of meta.mat; restore the devkit."
            ) from error
    found = {}
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line.replace('"', ""))
        if match is None and number == 1:
            continue  # a header
        label = match["label"] if match else ""
        if label.isdecimal() and int(label) < len(synsets):
            label = synsets[int(label)]
        if match is None or label not in synsets:
            raise SourceError(
                f"Line {number} of {path} is {line[:80]!r}; wanted a validation image and its index or synset."
            )
        found[match["name"]] = label
    return found


def _devkit_synsets(path: Path) -> dict[int, str]:
    """Synset by the devkit's own class number, from `meta.mat` beside the ground truth or in the folder above."""
    import numpy as np
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    places = [path.parent / "meta.mat", path.parent / "data" / "meta.mat"]
    meta = next((place for place in places if place.is_file()), None)
    if meta is None:
        raise SourceError(
            f"{path} counts classes in the devkit's own order, so meta.mat has to lie beside it; unpack the whole devkit."
        )
    try:
        table = loadmat(str(meta), squeeze_me=True)["synsets"]
        numbers, names = np.atleast_1d(table["ILSVRC2012_ID"]), np.atleast_1d(table["WNID"])
        return {int(number): str(name) for number, name in zip(numbers, names, strict=True)}
    except (MatReadError, KeyError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        raise SourceError(
            f"{meta} is not the devkit's table of synsets ({error}); restore it from its source."
        ) from error


def _lists(manifest: Manifest, entries: Iterable[Entry], given: Sequence[Path]) -> list[Path]:
    """The lists asked for, else those the manifest names, else those below the roots that look like one."""
    places = list(given) or [
        Path(each) for split in manifest.splits for each in split.annotations if not is_remote(each)
    ]
    if places:
        return places
    found = []
    for entry in entries:
        path = entry.file
        if path is None or entry.suffix not in ("txt", "csv"):
            continue
        if entry.name == _TRUTH or _starts_like_a_list(path):
            found.append(path)
    return found


def _starts_like_a_list(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(400).decode("latin-1").splitlines()
    return any(_LINE.fullmatch(line.strip().replace('"', "")) for line in start[:2])


def _name(entry: Entry) -> str | None:
    stem = entry.name.partition(".")[0]
    is_name = _TRAIN.fullmatch(stem) or _OTHER.fullmatch(stem)
    return stem if is_name and entry.suffix in _IMAGES else None


def _split(name: str) -> str:
    match = _OTHER.fullmatch(name)
    return match["split"] if match else "train"


def _synset(entry: Entry, name: str) -> str | None:
    if (match := _TRAIN.fullmatch(name)) is not None:
        return match["synset"]
    folder = entry.folders[-1]
    return folder if _SYNSET.fullmatch(folder) and _split(name) == "val" else None


def _annotation(manifest: Manifest, book: LabelBook, label: str | None, split: str, digest: str | None) -> Annotation:
    return book.annotation(label, matching_split(manifest, split) or split, annotation_sha256=digest)
