"""Selections: named, immutable views of a set. The same question gives the same clips, and a smaller share lies inside a larger one.

Clips stand in the order of hash(seed, clip id), or begin with its first and go on to what is least like those before (`diverse`);
`samples`, `share` and `hours` take a beginning of it, so sizes nest for every seed.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stmae_data import files
from stmae_data.errors import SelectionError, UsageError
from stmae_data.records import SCHEMA_VERSION, SetRef, plan_key
from stmae_data.select.candidates import (
    Candidate,
    candidates,
    first_of_each,
    labels_of,
    meeting,
    selection_exists,
    synonyms_of,
)
from stmae_data.select.diverse import METHOD, Embedding, farthest_first, find_embedding, read_vectors
from stmae_data.select.names import class_named
from stmae_data.select.profile import apportion
from stmae_data.shards import open_set, selection_digest

__all__ = [
    "SELECTION_COLUMNS",
    "NamedClip",
    "Selection",
    "class_named",
    "make_selection",
    "named_sample",
    "selected_clips",
]

SELECTION_COLUMNS: Final = {"clip_id": "VARCHAR", "ordinal": "BIGINT"}
"""Columns of `selections/<name>.parquet` (FACTS-inputs §4.3)."""

_FACTS: Final = {"digest", "num_clips", "seconds", "run_id"}
"""What the description of a selection says of its result; the rest says how it was chosen."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection on disk; `seconds` of stored video."""

    name: str
    digest: str
    num_clips: int
    seconds: float
    path: Path


@dataclass(frozen=True, slots=True)
class NamedClip:
    """A clip whose hashtags or title name a class; `by` is the hashtag or the title that does, `own_label` the clip's own label."""

    clip_id: str
    label: str
    by: str
    own_label: str | None


def make_selection(
    workspace: Path,
    name: str,
    *,
    source: SetRef,
    where: str | None = None,
    hashtags_of: str | None = None,
    per_class: int | None = None,
    samples: int | None = None,
    share: float | None = None,
    hours: float | None = None,
    minus: SetRef | None = None,
    like: SetRef | None = None,
    is_diverse: bool = False,
    embedding: str | None = None,
    max_cosine: float | None = None,
    seed: int = 0,
) -> Selection:
    """Choose clips of a set and write the choice down; the same choice again is reused.

    Args:
        workspace: where the set stands; the selection goes to `selections/<name>.parquet` and `.json`.
        name: name of the selection.
        source: set, split and perhaps selection to choose from.
        where: SQL condition over the columns of the ledger, run in a locked-down connection.
        hashtags_of: keep clips whose hashtags or title name a class of this set; that class is then the clip's label here.
        per_class: at most so many clips of each label; clips without a label are left out.
        samples, share, hours: how much of what is left, at most one of them. `share` in (0, 1].
        minus: leave out the clips of this reference.
        like: take labels in the proportions of this reference (where it has none, whole seconds of duration).
        is_diverse: of what the rest leaves, take the clips least like one another, by the set's embeddings.
        embedding: name of the table of vectors, where there are several.
        max_cosine: take only clips that are less alike than this, in (0, 1]; what is left then is like one taken.
        seed: selections of one seed nest.

    Raises:
        SelectionError: bad SQL, nothing or not enough found, or the name stands for another choice.
        UsageError: a number or name that cannot be; SetError: a set is missing or damaged; Busy: it is being written.
    """
    _check(name, per_class=per_class, samples=samples, share=share, hours=hours)
    amounts = [each for each in (samples, share, hours, max_cosine) if each is not None]
    _check_diverse(is_diverse, embedding=embedding, max_cosine=max_cosine, has_amount=bool(amounts), like=like)
    found = open_set(workspace, source.set_name, books_only=True)
    sets = {found.name: found}
    for other in (hashtags_of, minus and minus.set_name, like and like.set_name):
        if other and other not in sets:
            sets[other] = open_set(workspace, other, books_only=True)
    description = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "sql": where,
        "seed": seed,
        "parameters": {
            "from": str(source),
            "hashtags_of": hashtags_of,
            "per_class": per_class,
            "samples": samples,
            "share": share,
            "hours": hours,
            "minus": None if minus is None else str(minus),
            "like": None if like is None else str(like),
        },
        "parents": [{"name": each.name, "version": each.version, "digest": each.digest} for each in sets.values()],
        "synonyms": (synonyms_of(sets[hashtags_of]) or None) if hashtags_of is not None else None,
        "selections": {
            ref.selection: files.read_json(workspace / "selections" / f"{ref.selection}.json")["digest"]
            for ref in (source, minus, like)
            if ref is not None and selection_exists(workspace, ref)
        },
    }
    vectors = find_embedding(found, embedding) if is_diverse else None
    if vectors is not None:
        description["diverse"] = {
            "method": METHOD,
            "embedding": vectors.name,
            "table_sha256": vectors.sha256,
            "max_cosine": max_cosine,
        }
    path = workspace / "selections" / f"{name}.parquet"
    standing = _standing(path, description)
    if standing is not None:
        return standing
    clips = candidates(workspace, found, source)
    if where is not None:
        clips = meeting(workspace, found, where, clips)
    if hashtags_of is not None:
        names = class_named(labels_of(sets[hashtags_of]), synonyms_of(sets[hashtags_of]))
        clips = [
            dataclasses.replace(clip, label=named[0])
            for clip in clips
            if (named := names(clip.tags, clip.title)) is not None
        ]
    if minus is not None:
        unwanted = selected_clips(workspace, minus)
        clips = [clip for clip in clips if clip.clip_id not in unwanted]
    clips.sort(key=lambda clip: (plan_key(seed, clip.clip_id), clip.clip_id))
    if per_class is not None:
        clips = first_of_each(clips, lambda clip: clip.label, lambda _: per_class)
    if like is not None:
        clips = _alike(clips, candidates(workspace, sets[like.set_name], like), samples, name=name)
    if vectors is not None:
        samples, share = (samples, share) if share is None else (round(share * len(clips)), None)
        clips = _diverse(clips, vectors, samples=samples, hours=hours, max_cosine=max_cosine)
    clips = _beginning(clips, samples=samples, share=share, hours=hours, name=name)
    if not clips:
        raise SelectionError(f"Selection {name} would be empty: no clip of {source} meets it; ask for less.")
    with files.lock(path.with_name(f".{name}.lock"), what=f"Selection {name}"):
        return _standing(path, description) or _commit(path, clips, description)  # another may have made it meanwhile


def selected_clips(workspace: Path, reference: SetRef) -> frozenset[str]:
    """Clip ids that a set reference names.

    Raises:
        SetError: no such set or split; SelectionError: no such selection.
    """
    return frozenset(
        clip.clip_id
        for clip in candidates(workspace, open_set(workspace, reference.set_name, books_only=True), reference)
    )


def named_sample(workspace: Path, name: str, *, count: int) -> tuple[NamedClip, ...]:
    """The first clips, in the order of their seed, of a selection made with `hashtags_of`, with what named them.

    Whatever order the selection took them in (`diverse` begins with the most unlike), this one is a fair sample of it.

    Raises:
        SelectionError: no such selection, not made by hashtags, or its set has changed since.
    """
    path = workspace / "selections" / f"{name}.json"
    if not path.is_file():
        raise SelectionError(f"There is no selection {name!r} in {workspace}; make it: stmae-data select {name}.")
    description = files.read_json(path)
    said, seed = description["parameters"], int(description["seed"])
    if said["hashtags_of"] is None:
        raise SelectionError(f"Selection {name} was not made by hashtags; make one: stmae-data select --hashtags-of.")
    source = SetRef.parse(said["from"])
    clips = candidates(
        workspace, open_set(workspace, source.set_name, books_only=True), dataclasses.replace(source, selection=name)
    )
    clips.sort(key=lambda clip: (plan_key(seed, clip.clip_id), clip.clip_id))
    named_by = open_set(workspace, said["hashtags_of"], books_only=True)
    names = class_named(labels_of(named_by), synonyms_of(named_by))
    found = []
    for clip in clips[:count]:
        named = names(clip.tags, clip.title)
        assert named is not None
        found.append(NamedClip(clip.clip_id, *named, clip.label))
    return tuple(found)


def _check(name: str, *, per_class: int | None, samples: int | None, share: float | None, hours: float | None) -> None:
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} cannot name a selection; wanted letters, digits and . _ - beginning with a letter or digit."
        )
    given = [word for word, value in (("samples", samples), ("share", share), ("hours", hours)) if value is not None]
    if len(given) > 1:
        raise UsageError(f"--{given[0]} and --{given[1]} both say how much; name one of them.")
    for word, value in (("per-class", per_class), ("samples", samples), ("hours", hours)):
        if value is not None and not value > 0:
            raise UsageError(f"--{word} {value:g} takes nothing; wanted a number above 0.")
    if share is not None and not 0 < share <= 1:
        raise UsageError(f"--share {share:g} is no share; wanted a number above 0, at most 1.")


def _check_diverse(
    is_diverse: bool, *, embedding: str | None, max_cosine: float | None, has_amount: bool, like: SetRef | None
) -> None:
    if not is_diverse:
        for word, value in (("embedding", embedding), ("max-cosine", max_cosine)):
            if value is not None:
                raise UsageError(f"--{word} says how clips are told apart; it wants --diverse.")
        return
    if not has_amount:
        raise UsageError("--diverse wants to know when to stop: --samples, --share, --hours or --max-cosine.")
    if like is not None:
        raise UsageError("--diverse and --like both say which clips are taken; name one of them.")
    if max_cosine is not None and not 0 < max_cosine <= 1:
        raise UsageError(f"--max-cosine {max_cosine:g} is no cosine to stop at; wanted a number above 0, at most 1.")


def _standing(path: Path, description: Mapping[str, Any]) -> Selection | None:
    """The selection of this name, where it was made by the same choice from the same data.

    Raises:
        SelectionError: the name stands for another choice.
    """
    if not path.with_suffix(".json").is_file():
        return None
    said = files.read_json(path.with_suffix(".json"))
    for key in sorted({*description, *said} - _FACTS):
        if said.get(key) != description.get(key):
            raise SelectionError(
                f"There is a selection {path.stem} already, with {key} = {said.get(key)!r:.120}, wanted {description.get(key)!r:.120}; "
                "selections do not change: choose another name."
            )
    return Selection(path.stem, str(said["digest"]), int(said["num_clips"]), float(said["seconds"]), path)


def _alike(
    clips: Sequence[Candidate], model: Sequence[Candidate], samples: int | None, *, name: str
) -> list[Candidate]:
    """As many clips as fit the model's proportions of labels (or, without labels, of whole seconds), at most `samples`."""
    has_labels = any(clip.label is not None for clip in model)

    def kind(clip: Candidate) -> Any:
        return clip.label if has_labels else round(clip.seconds)

    wanted, there = (Counter(each for each in map(kind, side) if each is not None) for side in (model, clips))
    most = apportion(wanted, there, samples)
    if not most:
        raise SelectionError(
            f"Selection {name} would be empty: no clip has a {'class' if has_labels else 'length'} of the model; "
            "labels can come from --hashtags-of in the same command."
        )
    return first_of_each(clips, kind, lambda each: most.get(each, 0))


def _diverse(
    clips: Sequence[Candidate],
    embedding: Embedding,
    *,
    samples: int | None,
    hours: float | None,
    max_cosine: float | None,
) -> list[Candidate]:
    """As many clips as are wanted, each the one least like those before it."""
    kept: list[Candidate] = []
    seconds = 0.0
    if not clips or (samples is not None and samples > len(clips)):
        return list(clips)  # too few, as is told at once
    for row in farthest_first(read_vectors(embedding, [clip.clip_id for clip in clips]), max_cosine=max_cosine):
        if len(kept) == samples or (hours is not None and seconds >= hours * 3600):
            break
        kept.append(clips[row])
        seconds += clips[row].seconds
    return kept


def _beginning(
    clips: Sequence[Candidate], *, samples: int | None, share: float | None, hours: float | None, name: str
) -> list[Candidate]:
    """The first clips of the order, as much as is asked for."""
    if share is not None:
        return list(clips[: round(share * len(clips))])
    if samples is not None:
        if samples > len(clips) > 0:
            raise SelectionError(f"Selection {name} wants {samples} clips, {len(clips)} meet it; ask for fewer.")
        return list(clips[:samples])
    if hours is None:
        return list(clips)
    kept: list[Candidate] = []
    seconds = 0.0
    for clip in clips:
        if seconds >= hours * 3600:
            return kept
        kept.append(clip)
        seconds += clip.seconds
    if clips and seconds < hours * 3600:
        raise SelectionError(f"Selection {name} wants {hours:g} hours, {seconds / 3600:.3g} meet it; ask for fewer.")
    return kept


def _commit(path: Path, clips: Sequence[Candidate], description: Mapping[str, Any]) -> Selection:
    digest = selection_digest(description["parents"], (clip.clip_id for clip in clips))
    seconds = round(sum(clip.seconds for clip in clips), 3)
    rows = [{"clip_id": clip.clip_id, "ordinal": ordinal} for ordinal, clip in enumerate(clips)]
    files.commit_table(path, rows, SELECTION_COLUMNS, point="selection", order_by="ordinal")
    facts = {"digest": digest, "num_clips": len(clips), "seconds": seconds, "run_id": f"select-{digest[:16]}"}
    files.commit_json(path.with_suffix(".json"), {**description, **facts}, point="selection_json")
    return Selection(path.stem, digest, len(clips), seconds, path)
