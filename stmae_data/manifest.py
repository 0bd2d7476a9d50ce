"""A manifest says what one release of a data set is: splits, tables, labels, rights, and how it is cut into shards.

The shipped ones stand in `manifests/` (package `stmae_manifests`); any TOML file works in their place. `manifests/k400.toml`
explains every key.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from stmae_data.errors import ManifestError

__all__ = ["KINDS", "Manifest", "SplitSource", "is_remote", "label_slug", "load_manifest", "shipped"]

KINDS = ("kinetics", "something", "ava", "imagenet", "folder", "table", "webdataset")
"""Which reader of `stmae_data.sources` understands the files."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SPLIT = re.compile(r"[a-z]+")


def is_remote(location: str) -> bool:
    """Whether a location is a URL that `fetch` has to bring here first."""
    return re.match(r"[a-z][a-z0-9+.-]*://", location) is not None


def label_slug(label: str) -> str:
    """One spelling for one class: quotes and apostrophes go, runs of other signs become `_`, case is folded.

    Maps the three spellings in use for Kinetics (raw, mmaction2, torchvision) and the folder names made of them to the same text.
    """
    text = unicodedata.normalize("NFKC", label).casefold()
    text = re.sub("[\"'`´‘’“”]", "", text)
    return re.sub(r"[\W_]+", "_", text).strip("_")


@dataclass(frozen=True, slots=True)
class SplitSource:
    """Where one split of a release comes from.

    `words` are the names this split goes by in tables and folders (`val`, `validate`). `annotations` and `archives` are absolute
    paths or URLs; a URL in `archives` that ends in `.txt` lists further URLs or names, one per line, and `{0..39}` in one stands for
    these numbers; `replacements` come after them.
    """

    name: str
    words: tuple[str, ...]
    annotations: tuple[str, ...] = ()
    archives: tuple[str, ...] = ()
    replacements: tuple[str, ...] = ()
    archives_below: str | None = None
    """Where the bare names of a list stand, a URL; None: beside the list."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One release of a data set, as its TOML file says it."""

    name: str
    release: str
    kind: str
    splits: tuple[SplitSource, ...]
    sha256: str
    path: Path | None = None
    """The TOML file, None for a shipped manifest."""
    title: str | None = None
    homepage: str | None = None
    license: str | None = None
    license_origin: str | None = None
    is_redistributable: bool = False
    citation: str | None = None
    roots: tuple[Path, ...] = ()
    """Folders to read when no `--from` is given (key `from`)."""
    files: str = "clips"
    """What a file without times in its name holds: the annotated piece (`clips`) or the whole video (`originals`)."""
    labels: tuple[str, ...] = ()
    """All class labels; a label's place is its index. Empty: the sorted labels of the train tables."""
    label_synonyms: Mapping[str, str] = field(default_factory=dict)
    evaluation_splits: tuple[str, ...] = ()
    seed: int = 0
    short_side_px: int = 256
    media_kind: str = "video"
    """What a sample holds: a `video` or an `image`."""
    picture_side_px: int = 0
    """What the short side of pictures is made smaller to, where the file says `short_side_px`; 0 leaves their size alone."""
    shard_bytes: int = 512_000_000
    clips_per_shard: int | None = None
    max_duration_error_seconds: float | None = None
    """A clip whose measured duration is further from its annotation is dropped; None flags those more than a second off."""
    base_url: str | None = None
    """What all URLs of the release begin with; `fetch --base-url` puts a mirror in its place."""
    archives_by_class: tuple[str, ...] = ()
    """Splits whose archives are named after one class each, so that `fetch --classes` can choose among them."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Known digests, "sha256:…" or "md5:…", by the part of the URL behind `base_url`."""
    where: str | None = None
    """For releases whose files `fetch` may not or cannot bring: one sentence that says where to get them."""

    def split(self, name: str) -> SplitSource:
        """The split called `name` or by one of its words.

        Raises:
            ManifestError: the release has no such split.
        """
        found = self.split_of_word(name)
        if found is None:
            known = ", ".join(each.name for each in self.splits)
            raise ManifestError(f"{self.name} has no split {name!r}; it has {known}{_nearest(name, self._words())}.")
        return next(each for each in self.splits if each.name == found)

    def split_of_word(self, word: str) -> str | None:
        """The name of the split that goes by `word`, None when none does."""
        wanted = word.strip().casefold()
        for each in self.splits:
            if wanted == each.name or wanted in each.words:
                return each.name
        return None

    def _words(self) -> list[str]:
        return [word for each in self.splits for word in (each.name, *each.words)]


def shipped() -> list[str]:
    """Names of the manifests that come with the package."""
    folder = resources.files("stmae_manifests")
    return sorted(each.name.removesuffix(".toml") for each in folder.iterdir() if each.name.endswith(".toml"))


def load_manifest(name_or_path: str | Path) -> Manifest:
    """Read a shipped manifest by name, or any TOML file.

    Raises:
        ManifestError: there is no such manifest, or it does not say what it must.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text:
        path = Path(text)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ManifestError(
                f"The manifest {text} cannot be read ({error.strerror}); name a TOML file or one of {', '.join(shipped())}."
            ) from error
        return _parse(data, where=text, path=path.absolute())
    names = shipped()
    if text not in names:
        raise ManifestError(
            f"There is no manifest {text!r}{_nearest(text, names)}; shipped are {', '.join(names)}, and any FILE.toml works."
        )
    data = (resources.files("stmae_manifests") / f"{text}.toml").read_bytes()
    return _parse(data, where=f"{text}.toml", path=None)


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word.casefold(), list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
_TOP = {
    "name": "str",
    "release": "str",
    "kind": "str",
    "title": "str",
    "homepage": "str",
    "license": "str",
    "license_origin": "str",
    "is_redistributable": "bool",
    "citation": "str",
    "from": "list",
    "files": "str",
    "evaluation_splits": "list",
    "seed": "int",
    "short_side_px": "int",
    "media_kind": "str",
    "shard_bytes": "int",
    "clips_per_shard": "int",
    "max_duration_error_seconds": "float",
    "base_url": "str",
    "archives_by_class": "list",
    "where": "str",
    "splits": "table",
    "labels": "table",
    "checksums": "table",
}
_SPLIT_KEYS = {
    "words": "list",
    "annotations": "list",
    "archives": "list",
    "archives_below": "str",
    "replacements": "list",
}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}")
_LABEL_KEYS = {"names": "list", "synonyms": "table"}


class _Reader:
    """One TOML table, checked key by key, so that every complaint names the place."""

    def __init__(self, values: Mapping[str, Any], known: Mapping[str, str], *, where: str) -> None:
        self.values, self.where = values, where
        for key, value in values.items():
            if key not in known:
                raise ManifestError(
                    f"{where} has an unknown key {key!r}{_nearest(key, known)}; known are {', '.join(known)}."
                )
            if not _fits(value, known[key]):
                raise ManifestError(
                    f"{where}: {key} is {value!r}, wanted {_WANTED[known[key]]}; correct it, then run again."
                )

    def need(self, key: str) -> Any:
        """A key that must be there."""
        if key not in self.values:
            raise ManifestError(f"{self.where} does not say {key!r}; add it (manifests/k400.toml explains every key).")
        return self.values[key]

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, empty when absent."""
        return tuple(self.values.get(key, ()))

    def some(self, *keys: str) -> dict[str, Any]:
        """Those of `keys` that are there, so that defaults stay in one place."""
        return {key: self.values[key] for key in keys if key in self.values}


_WANTED = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list of texts",
    "table": "a table",
}


def _fits(value: Any, kind: str) -> bool:
    if kind == "list":
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    if kind == "table":
        return isinstance(value, dict)
    return isinstance(value, _TYPES[kind]) and isinstance(value, bool) == (kind == "bool")


def _parse(data: bytes, *, where: str, path: Path | None) -> Manifest:
    try:
        values = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ManifestError(f"{where} is not TOML ({error}); correct it, then run again.") from error
    top = _Reader(values, _TOP, where=where)
    labels = _Reader(top.values.get("labels", {}), _LABEL_KEYS, where=f"{where} [labels]")
    synonyms = labels.values.get("synonyms", {})
    if not all(isinstance(each, str) for each in synonyms.values()):
        raise ManifestError(f'{where} [labels.synonyms] must map texts to texts, as in "old label" = "label".')
    manifest = Manifest(
        name=top.need("name"),
        release=top.need("release"),
        kind=top.need("kind"),
        splits=_splits(top.need("splits"), where=where, path=path),
        sha256=hashlib.sha256(data).hexdigest(),
        path=path,
        roots=tuple(Path(each) for each in _located(top.texts("from"), where=where, path=path)),
        labels=labels.texts("names"),
        label_synonyms={label_slug(old): new for old, new in synonyms.items()},
        evaluation_splits=top.texts("evaluation_splits"),
        archives_by_class=top.texts("archives_by_class"),
        checksums=_checksums(top.values.get("checksums", {}), where=where),
        **top.some("base_url", "where"),
        **top.some("title", "homepage", "license", "license_origin", "is_redistributable", "citation", "files", "seed"),
        **top.some("short_side_px", "shard_bytes", "clips_per_shard", "max_duration_error_seconds"),
        media_kind=top.values.get("media_kind", "image" if top.need("kind") == "imagenet" else "video"),
        picture_side_px=top.values.get("short_side_px", 0),
    )
    _check(manifest, where=where)
    return manifest


def _splits(tables: Mapping[str, Any], *, where: str, path: Path | None) -> tuple[SplitSource, ...]:
    found = []
    for name, table in tables.items():
        place = f"{where} [splits.{name}]"
        if not isinstance(table, dict):
            raise ManifestError(f"{place} must be a table, as in [splits.train].")
        if not _SPLIT.fullmatch(name):
            raise ManifestError(f"{place}: a split is named by small letters a to z only; use `words` for other names.")
        reader = _Reader(table, _SPLIT_KEYS, where=place)
        found.append(
            SplitSource(
                name=name,
                words=tuple(word.casefold() for word in reader.texts("words")),
                annotations=_located(reader.texts("annotations"), where=place, path=path),
                archives=_located(reader.texts("archives"), where=place, path=path),
                replacements=_located(reader.texts("replacements"), where=place, path=path),
                **reader.some("archives_below"),
            )
        )
    if not found:
        raise ManifestError(f"{where} names no split; add at least [splits.train].")
    return tuple(found)


def _checksums(values: Mapping[str, Any], *, where: str) -> dict[str, str]:
    for name, value in values.items():
        if not isinstance(value, str) or not _DIGEST.fullmatch(value):
            raise ManifestError(
                f'{where} [checksums]: {name} is {value!r}, wanted "sha256:" and 64 or "md5:" and 32 small hex digits.'
            )
    return dict(values)


def _located(locations: Iterable[str], *, where: str, path: Path | None) -> tuple[str, ...]:
    """Paths made absolute from the folder of the TOML file; URLs as they are."""
    placed = []
    for location in locations:
        if not is_remote(location) and not Path(location).is_absolute():
            if path is None:
                raise ManifestError(f"{where}: {location!r} is relative, but a shipped manifest stands in no folder.")
            location = str(path.parent / location)
        placed.append(location)
    return tuple(placed)


def _check(manifest: Manifest, *, where: str) -> None:
    if not _NAME.fullmatch(manifest.name):
        raise ManifestError(f"{where}: name is {manifest.name!r}, wanted letters, digits and . _ - with no other sign.")
    if manifest.kind not in KINDS:
        near = _nearest(manifest.kind, KINDS)
        raise ManifestError(f"{where}: kind is {manifest.kind!r}{near}, wanted one of {', '.join(KINDS)}.")
    if manifest.files not in ("clips", "originals"):
        raise ManifestError(f'{where}: files is {manifest.files!r}, wanted "clips" or "originals".')
    kinds = {"imagenet": ("image",), "webdataset": ("video", "image"), "folder": ("video", "image")}.get(
        manifest.kind, ("video",)
    )
    if manifest.media_kind not in kinds:
        raise ManifestError(
            f"{where}: media_kind is {manifest.media_kind!r}, wanted {' or '.join(kinds)} for the kind {manifest.kind}."
        )
    for name in (*manifest.evaluation_splits, *manifest.archives_by_class):
        manifest.split(name)
    for location in (manifest.base_url, *(split.archives_below for split in manifest.splits)):
        if location is not None and not (is_remote(location) and location.endswith("/")):
            raise ManifestError(f"{where}: {location!r} is no place to fetch from; wanted a URL that ends in /.")
    for key in ("short_side_px", "shard_bytes", "clips_per_shard", "max_duration_error_seconds"):
        value = getattr(manifest, key)
        if value is not None and value <= 0:
            raise ManifestError(f"{where}: {key} is {value}, wanted more than 0.")
    owners: dict[str, str] = {}
    for split in manifest.splits:
        for word in {split.name, *split.words}:
            if owners.setdefault(word, split.name) != split.name:
                raise ManifestError(
                    f"{where}: the word {word!r} names both split {owners[word]} and split {split.name}."
                )
    slugs = [label_slug(label) for label in manifest.labels]
    doubled = sorted({slug for slug in slugs if slugs.count(slug) > 1}) if len(set(slugs)) < len(slugs) else []
    if doubled:
        raise ManifestError(f"{where} [labels]: {doubled[0]!r} stands twice in names; every class once.")
