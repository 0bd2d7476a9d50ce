"""`croissant.json`: the set in the words of Croissant 1.1 (ML Commons), generated from `set.json` and the ledgers.

Only what is on record is said: a licence nobody stated, a creator or a date nobody named stay out, though the format would like them.
Files are named relative to the document. The record set `descriptions` has a record for each json member of the tars, `media` one for each
other member; both have the clip id for key. (mlcroissant 1.1.1 validates all of it and reads `media`; json inside archives and
references between record sets it cannot handle yet, so there are none.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from stmae_data.errors import Reason
from stmae_data.publish.facts import CardFacts
from stmae_data.publish.terms import CONTEXT, FIELDS, LABEL_FIELDS, SPLIT_KINDS, license_id
from stmae_data.report.text import cut

__all__ = ["Authors", "croissant"]

_SPECIFICATION: Final = "http://mlcommons.org/croissant/1.1"
_RESPONSIBLE_AI: Final = "http://mlcommons.org/croissant/RAI/1.0"


@dataclass(frozen=True, slots=True)
class Authors:
    """What nobody but the publisher knows: who made the set, where it is published, and when (YYYY-MM-DD)."""

    people: tuple[str, ...] = ()
    organizations: tuple[str, ...] = ()
    url: str | None = None
    published: str | None = None


def croissant(facts: CardFacts, authors: Authors) -> dict[str, Any]:
    """The whole document, as JSON values."""
    found = facts.found
    citations = sorted({str(source["citation"]) for source in facts.sources if source.get("citation")})
    people = [{"@type": "sc:Person", "name": cut(name)} for name in authors.people]
    organizations = [{"@type": "sc:Organization", "name": cut(name)} for name in authors.organizations]
    document = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [_SPECIFICATION, _RESPONSIBLE_AI],
        "name": found.name,
        "description": _description(facts),
        "version": f"{found.version}.0.0",
        "isLiveDataset": False,
        "url": authors.url,
        "license": [_license(each.license) for each in facts.rights if each.license],
        "creator": people + organizations,
        "datePublished": authors.published,
        "citeAs": "; ".join(citations),
        "keywords": sorted({"webdataset", "image" if facts.is_image_set else "video", *_dataset_names(facts)}),
        "distribution": _distribution(facts),
        "recordSet": [_splits(facts), *_labels(facts), _descriptions(facts), _media(facts)],
        **_provenance(facts),
        **_responsible_ai(facts),
    }
    return {key: value for key, value in document.items() if value not in (None, "", [], {})}


def _description(facts: CardFacts) -> str:
    kind = "pictures" if facts.is_image_set else "video clips"
    splits = ", ".join(f"{split.num_clips:,} in {split.name}" for split in facts.splits)
    return (
        f"{facts.title}: {facts.num_clips:,} {kind} ({splits}) as WebDataset shards, every clip decoded and verified. "
        f"Version {facts.found.version}, digest {facts.found.digest}."
    )


def _dataset_names(facts: CardFacts) -> list[str]:
    return [cut(dataset, 80) for dataset, _ in facts.datasets]


def _license(text: str | None) -> Any:
    known = license_id(text)
    return f"https://spdx.org/licenses/{known}.html" if known else {"@type": "sc:CreativeWork", "name": cut(text)}


def _distribution(facts: CardFacts) -> list[dict[str, Any]]:
    tars = [
        {
            "@type": "cr:FileObject",
            "@id": f"{shard.name}.tar",
            "name": f"{shard.name}.tar",
            "contentUrl": f"{shard.name}.tar",
            "contentSize": f"{shard.bytes} B",
            "encodingFormat": "application/x-tar",
            "sha256": shard.sha256,
        }
        for shard in facts.found.shards
    ]
    inside = [{"@id": f"{shard.name}.tar"} for shard in facts.found.shards if shard.samples]
    kinds = (
        ("descriptions-files", "json", "application/json", "One description for each sample."),
        (
            "media-files",
            facts.extension,
            "image/jpeg" if facts.is_image_set else "video/mp4",
            "The media of each sample.",
        ),
    )
    return tars + [
        {
            "@type": "cr:FileSet",
            "@id": name,
            "name": name,
            "description": text,
            "containedIn": inside,
            "encodingFormat": encoding,
            "includes": f"*.{extension}",
        }
        for name, extension, encoding, text in kinds
    ]


def _splits(facts: CardFacts) -> dict[str, Any]:
    """The splits, each with its meaning where the word has one."""
    rows = [
        {"splits/name": split.name, **({"splits/url": kind} if (kind := SPLIT_KINDS.get(split.name)) else {})}
        for split in facts.splits
    ]
    has_all = all("splits/url" in row for row in rows)
    meaning = {"@type": "cr:Field", "@id": "splits/url", "name": "url", "dataType": "sc:URL"}
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [
            {"@type": "cr:Field", "@id": "splits/name", "name": "name", "dataType": "sc:Text"},
            *([meaning] if has_all else []),
        ],
        "data": rows if has_all else [{"splits/name": row["splits/name"]} for row in rows],
    }


def _labels(facts: CardFacts) -> list[dict[str, Any]]:
    """The classes, with their index where every class has one."""
    if not facts.labels:
        return []
    fields = [{"@type": "cr:Field", "@id": "labels/name", "name": "name", "dataType": "sc:Text"}]
    rows: list[dict[str, Any]] = [{"labels/name": label} for label in facts.labels]
    if facts.label_indices is not None:
        fields.append({"@type": "cr:Field", "@id": "labels/index", "name": "index", "dataType": "sc:Integer"})
        for row, index in zip(rows, facts.label_indices, strict=True):
            row["labels/index"] = index
    return [
        {
            "@type": "cr:RecordSet",
            "@id": "labels",
            "name": "labels",
            "dataType": "sc:Enumeration",
            "key": {"@id": "labels/name"},
            "field": fields,
            "data": rows,
        }
    ]


def _descriptions(facts: CardFacts) -> dict[str, Any]:
    """One record for each json member. Its key `clip_id` is the key of the record set `media` too."""
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"descriptions/{name}",
            "name": name,
            "description": text,
            "dataType": kind,
            "source": {"fileSet": {"@id": "descriptions-files"}, "extract": {"jsonPath": f"$.{name}"}},
        }
        for name, (kind, text) in FIELDS.items()
        if facts.labels or name not in LABEL_FIELDS
    ]
    if facts.has_boxes:
        fields.append(_boxes())
    return {
        "@type": "cr:RecordSet",
        "@id": "descriptions",
        "name": "descriptions",
        "description": "What is known of each sample.",
        "key": {"@id": "descriptions/clip_id"},
        "field": fields,
    }


def _boxes() -> dict[str, Any]:
    source = {"fileSet": {"@id": "descriptions-files"}, "extract": {"jsonPath": "$.boxes"}}
    return {
        "@type": "cr:Field",
        "@id": "descriptions/boxes",
        "name": "boxes",
        "description": "Boxes in shares of width and height: second, x1, y1, x2, y2, action_id, person_id, score.",
        "dataType": "cr:BoundingBox",
        "repeated": True,
        "source": {**source, "format": "REL_XYXY"},
    }


def _media(facts: CardFacts) -> dict[str, Any]:
    source = {"fileSet": {"@id": "media-files"}}
    kind = "sc:ImageObject" if facts.is_image_set else "sc:VideoObject"
    return {
        "@type": "cr:RecordSet",
        "@id": "media",
        "name": "media",
        "description": "The bytes of each sample.",
        "key": {"@id": "media/clip_id"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": "media/clip_id",
                "name": "clip_id",
                "description": "The key of the sample.",
                "dataType": "sc:Text",
                "source": {
                    **source,
                    "extract": {"fileProperty": "filename"},
                    "transform": {"regex": f"^(.+)\\.{facts.extension}$"},
                },
            },
            {
                "@type": "cr:Field",
                "@id": "media/content",
                "name": "content",
                "description": "The file.",
                "dataType": kind,
                "source": {**source, "extract": {"fileProperty": "content"}},
            },
        ],
    }


def _provenance(facts: CardFacts) -> dict[str, Any]:
    """Where the set is from and what made it, in PROV-O."""
    seal = facts.found.seal
    created = seal.get("created_from") or {}
    origins: list[dict[str, Any]] = [
        {
            "@type": "prov:Entity",
            "@id": f"urn:sha256:{parent['digest']}",
            "prov:label": f"set {parent['name']} version {parent['version']}",
        }
        for parent in seal.get("parents") or []
    ]
    if created.get("manifest_sha256"):
        origin = {
            "@type": "prov:Entity",
            "@id": f"urn:sha256:{created['manifest_sha256']}",
            "prov:label": f"manifest {created['manifest']}",
        }
        if facts.manifest is not None and facts.manifest.homepage:
            origin["prov:atLocation"] = facts.manifest.homepage
        origins.append(origin)
    origins += [
        {"@type": "prov:Entity", "@id": f"urn:sha256:{table}", "prov:label": "annotation table"}
        for table in facts.tables
    ]
    versions: Mapping[str, str] = seal.get("versions") or {}
    software = [
        {"@type": "prov:SoftwareAgent", "@id": f"urn:software:{name}:{version}", "prov:label": f"{name} {version}"}
        for name, version in sorted(versions.items())
    ]
    activities: list[dict[str, Any]] = [
        {"@type": "prov:Activity", "@id": f"urn:stmae:build:{created.get('plan_sha256', facts.found.digest)}"}
    ]
    activities[0] |= {"prov:label": "stmae-data build", "prov:wasAssociatedWith": software}
    if seal.get("rewritten_by"):
        run = str(seal["rewritten_by"])
        label = f"stmae-data {run.partition('-')[0]}"
        activities.append({"@type": "prov:Activity", "@id": f"urn:stmae:run:{run}", "prov:label": label})
    return {"prov:wasDerivedFrom": origins, "prov:wasGeneratedBy": activities}


def _responsible_ai(facts: CardFacts) -> dict[str, Any]:
    """The facts on record that the RAI vocabulary has words for; judgements are nobody's but the publisher's."""
    seal = facts.found.seal
    counts: Mapping[str, Any] = seal.get("counts") or {}
    recipe: Mapping[str, Any] = seal.get("recipe") or {}
    datasets = [f"{count:,} clips of {cut(name)}, release {cut(release)}" for (name, release), count in _known(facts)]
    platforms = [f"{count:,} from {cut(name)}" for name, count in facts.platforms.items()]
    collection = [f"{counts.get('planned', 0):,} clips were planned and {counts.get('written', 0):,} written"]
    collection += ["; ".join(each) for each in (datasets, platforms) if each]
    gone = {str(reason): count for reason, count in (counts.get("reasons") or {}).items() if count}
    failed = {reason: count for reason, count in gone.items() if Reason(reason).outcome == "failed"}
    ruled = {reason: count for reason, count in gone.items() if reason not in failed}
    facts_of = {
        "rai:dataCollection": ". ".join(collection) + ".",
        "rai:dataCollectionType": ["Web Scraping"] if facts.num_fetched else None,
        "rai:dataCollectionMissingData": _listed("Clips that could not be had or decoded", failed),
        "rai:dataManipulationProtocol": _listed("Clips left out by a rule", ruled),
        "rai:dataPreprocessingProtocol": _preprocessing(recipe, seal.get("versions") or {}),
        "rai:dataAnnotationProtocol": [
            "Labels are those of the annotation tables with sha256 " + ", ".join(facts.tables) + "; none was changed."
        ]
        if facts.labels and facts.tables
        else None,
        "rai:dataReleaseMaintenancePlan": f"{facts.num_removed:,} clips have left the set since it was first sealed; meta/removed.parquet says which and why."
        if facts.num_removed
        else None,
    }
    return {key: value for key, value in facts_of.items() if value}


def _known(facts: CardFacts) -> Sequence[tuple[tuple[str, str], int]]:
    return [((name, release or "unknown"), count) for (name, release), count in facts.datasets.items()]


def _listed(text: str, counts: Mapping[str, int]) -> str | None:
    return f"{text}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()) + "." if counts else None


def _preprocessing(recipe: Mapping[str, Any], versions: Mapping[str, str]) -> list[str]:
    told = []
    if recipe.get("encoding"):
        side = f", short side at most {recipe['short_side_px']} px" if recipe.get("short_side_px") else ""
        ffmpeg = f", ffmpeg {versions['ffmpeg']}" if versions.get("ffmpeg") else ""
        told.append(f"Stored with the encoding {recipe['encoding']} (layout {recipe.get('layout')}){side}{ffmpeg}.")
    if recipe.get("seed") is not None:
        told.append(f"Samples stand in the order of hash(seed {recipe['seed']}, clip id).")
    return [re.sub(r"\s+", " ", each) for each in told]
