"""`README.md`: the set for people, with the front matter the Hub reads. Texts of strangers are cut, escaped, and never markup."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from stmae_data.errors import Reason
from stmae_data.publish.facts import CardFacts, SplitFacts
from stmae_data.publish.terms import license_id
from stmae_data.report.text import cut, human_bytes

__all__ = ["readme"]

_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
"""The Hub's size classes are named by their ends; the first ends at 1,000 samples."""
_HUB_LICENSES = {"ODC-By-1.0": "odc-by", "ODbL-1.0": "odbl", "PDDL-1.0": "pddl"}
_MOST_LABELS = 1_000


def readme(facts: CardFacts) -> str:
    """The whole card."""
    parts = [
        _front(facts),
        _head(facts),
        _reading(facts),
        _origin(facts),
        _missing(facts),
        _rights(facts),
        _classes(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(facts: CardFacts) -> str:
    """YAML for the Hub. Its data files are named one by one, so that it takes no table of `meta/` for the data."""
    task = _task(facts)
    lines = ["---", f"pretty_name: {_yaml(facts.title)}", f"license: {_hub_license(facts)}"]
    lines += ["task_categories:", f"- {task}"] if task else []
    lines += ["size_categories:", f"- {_size(facts.num_clips)}"]
    lines += ["tags:", "- webdataset", "- image" if facts.is_image_set else "- video"]
    splits = [split for split in facts.splits if split.tars]
    if splits:
        lines += ["configs:", "- config_name: default", "  data_files:"]
    for split in splits:
        lines += [f"  - split: {split.name}", *_paths(split)]
    return "\n".join([*lines, "---"])


def _paths(split: SplitFacts) -> list[str]:
    """A pattern; the names themselves where a shard is empty, since the Hub learns the fields from the first tar."""
    if split.is_whole:
        return [f"    path: {_yaml(f'{split.name}-*.tar')}"]
    return ["    path:", *(f"    - {name}" for name in split.tars)]


def _yaml(text: str) -> str:
    """A quoted YAML scalar: a JSON string is one, once nothing unprintable is left in it."""
    return json.dumps(cut(text), ensure_ascii=False)


def _hub_license(facts: CardFacts) -> str:
    """The Hub's identifier where one licence is on record for all clips, `other` for texts of their own, `unknown` without any."""
    texts = {each.license for each in facts.rights}
    known = license_id(next(iter(texts))) if len(texts) == 1 else None
    if known:
        return _HUB_LICENSES.get(known, known.casefold())
    return "other" if texts - {None} else "unknown"


def _task(facts: CardFacts) -> str | None:
    if facts.has_boxes:
        return "object-detection"
    if facts.labels:
        return "image-classification" if facts.is_image_set else "video-classification"
    return None


def _size(count: int) -> str:
    step = next((number for number in range(len(_SIZES)) if count < 10 ** (number + 3)), None)
    if step is None:
        return f"n>{_SIZES[-1]}"
    return f"{_SIZES[step - 1]}<n<{_SIZES[step]}" if step else f"n<{_SIZES[0]}"


def _head(facts: CardFacts) -> str:
    kind = "pictures" if facts.is_image_set else "clips"
    columns = ["split", kind, "hours", "classes", "shards with samples", "size"]
    rows = [
        [
            split.name,
            f"{split.num_clips:,}",
            f"{split.hours:,.2f}",
            f"{split.num_labels:,}",
            f"{len(split.tars):,}",
            human_bytes(split.stored_bytes),
        ]
        for split in facts.splits
    ]
    found = facts.found
    return "\n\n".join(
        [
            f"# {_plain(facts.title)}",
            f"Version {found.version}, digest `{found.digest}` (sha256 over split, name and sha256 of every shard).",
            _table(columns, rows),
        ]
    )


def _reading(facts: CardFacts) -> str:
    names = sorted(shard.name for shard in facts.found.shards)
    first, last = names[0], [name for name in names if name.rpartition("-")[0] == names[0].rpartition("-")[0]][-1]
    span = f"{first}.tar" if first == last else f"{first[:-6]}{{{first[-6:]}..{last[-6:]}}}.tar"
    return "\n".join(
        [
            "## Reading it",
            "",
            f"WebDataset shards: each sample is `<key>.json`, then `<key>.{facts.extension}`; the key is the clip id, the fields are the same in every sample.",
            "",
            "```python",
            "import webdataset as wds",
            "",
            f'clips = wds.WebDataset("{span}", shardshuffle=False)',
            "```",
            "",
            "`meta/set.json` lists every shard with its sha256; `meta/ledger/*.parquet` holds one row for every planned clip, written or not.",
        ]
    )


def _origin(facts: CardFacts) -> str:
    seal = facts.found.seal
    lines = ["## Where it is from", ""]
    for source in facts.sources:
        cited = f" Cite: {_plain(str(source['citation']))}." if source.get("citation") else ""
        lines.append(f"- {_plain(str(source.get('name')))}, read as {_plain(str(source.get('kind')))}.{cited}")
    if facts.manifest is not None and facts.manifest.homepage:
        lines.append(f"- Home of the data: {facts.manifest.homepage}")
    for parent in seal.get("parents") or []:
        lines.append(
            f"- Made from set {_plain(parent['name'])} version {parent['version']}, digest `{parent['digest']}`."
        )
    recipe = seal.get("recipe") or {}
    told = ", ".join(f"{key} {recipe[key]}" for key in ("encoding", "layout", "short_side_px", "seed") if key in recipe)
    lines += [f"- Recipe: {_plain(told)}."] if told else []
    versions = ", ".join(f"{name} {version}" for name, version in sorted((seal.get("versions") or {}).items()))
    lines += [f"- Made with {_plain(versions)}."] if versions else []
    return "\n".join(lines) if len(lines) > 2 else ""


def _missing(facts: CardFacts) -> str:
    counts = facts.found.seal.get("counts") or {}
    reasons = {reason: count for reason, count in (counts.get("reasons") or {}).items() if count}
    if not reasons:
        return ""
    rows = [[reason, Reason(reason).outcome, f"{count:,}"] for reason, count in sorted(reasons.items())]
    told = f"{counts['planned']:,} clips were planned, {counts['written']:,} are here."
    return "\n\n".join(["## What is not in it", told, _table(["reason", "outcome", "clips"], rows)])


def _rights(facts: CardFacts) -> str:
    words = {True: "yes", False: "no", None: "not on record"}
    rows = [
        [
            _plain(each.license) if each.license else "not on record",
            _plain(each.license_origin) if each.license_origin else "",
            words[each.is_redistributable],
            f"{each.num_clips:,}",
        ]
        for each in facts.rights[:50]
    ]
    if len(facts.rights) > len(rows):
        rows.append([f"{len(facts.rights) - len(rows)} more in the ledgers", "", "", ""])
    return "\n\n".join(["## Rights", _table(["licence", "said by", "may be passed on", "clips"], rows)]) if rows else ""


def _classes(facts: CardFacts) -> str:
    if not facts.labels:
        return ""
    shown = [_plain(label) for label in facts.labels[:_MOST_LABELS]]
    rest = f" … and {len(facts.labels) - len(shown):,} more" if len(facts.labels) > len(shown) else ""
    order = "by index" if facts.label_indices is not None else "sorted"
    return "\n\n".join([f"## Classes ({len(facts.labels):,}, {order})", " · ".join(shown) + rest])


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no link, no new line."""
    line = re.sub(r"\s+", " ", cut(text)).strip()
    for sign, shown in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("://", "&#58;//"), ("www.", "www&#46;")):
        line = line.replace(sign, shown)
    return re.sub(r"([\\`*_{}\[\]|#~!])", r"\\\1", line)
