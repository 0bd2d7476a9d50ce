"""How hashtags and titles name classes."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from stmae_data.manifest import label_slug

__all__ = ["class_named"]


def class_named(
    labels: Iterable[str], synonyms: Mapping[str, str] | None = None
) -> Callable[[Sequence[str], str], tuple[str, str] | None]:
    """How hashtags and titles name classes: a function of (tags, title) that returns (label, what named it), or None.

    A hashtag names a class when its letters and digits are those of the class ("#AirDrumming": air drumming); a title when the
    words of the class stand in it side by side. Of several the longest wins, a hashtag before a title. `synonyms` (other spelling to
    label) count as the labels themselves, unless another label is spelled like that.
    """
    spelled = {label_slug(label): label for label in sorted(set(labels))}
    names = {old: spelled[label_slug(new)] for old, new in (synonyms or {}).items() if label_slug(new) in spelled} | {
        label: label for label in spelled.values()
    }
    words = [(_words(name), label) for name, label in names.items()]
    by_tag = {"".join(parts): label for parts, label in words if parts}
    by_first: dict[str, list[tuple[list[str], str]]] = defaultdict(list)
    for parts, label in words:
        if parts:
            by_first[parts[0]].append((parts, label))

    def name(tags: Sequence[str], title: str) -> tuple[str, str] | None:
        named = [(compact, tag) for tag in tags if (compact := "".join(_words(tag))) in by_tag]
        if named:
            compact, tag = max(named, key=lambda each: (len(each[0]), each))
            return by_tag[compact], f"#{tag.lstrip('#')}"
        said = _words(title)
        found = [
            (len(parts), label)
            for place, word in enumerate(said)
            for parts, label in by_first.get(word, ())
            if said[place : place + len(parts)] == parts
        ]
        return (max(found)[1], title) if found else None

    return name


def _words(text: str) -> list[str]:
    """Words of letters and digits, compatibility forms and case folded."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())
