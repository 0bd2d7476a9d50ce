"""The fixed words of the cards: the JSON-LD context of Croissant 1.1, the fields of a sample, licences by their SPDX names."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["CONTEXT", "FIELDS", "LABEL_FIELDS", "SPLIT_KINDS", "license_id"]

CONTEXT: Final[dict[str, Any]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

_LICENSES: Final = (
    "CC0-1.0",
    "CC-BY-2.0",
    "CC-BY-2.5",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "CC-BY-NC-2.0",
    "CC-BY-NC-3.0",
    "CC-BY-NC-4.0",
    "CC-BY-ND-4.0",
    "CC-BY-NC-ND-3.0",
    "CC-BY-NC-ND-4.0",
    "CC-BY-NC-SA-2.0",
    "CC-BY-NC-SA-3.0",
    "CC-BY-NC-SA-4.0",
    "Apache-2.0",
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "PDDL-1.0",
    "ODC-By-1.0",
    "ODbL-1.0",
)
SPLIT_KINDS: Final = {
    "train": "cr:TrainingSplit",
    "val": "cr:ValidationSplit",
    "validation": "cr:ValidationSplit",
    "test": "cr:TestSplit",
}
FIELDS: Final = {
    "clip_id": ("sc:Text", "The key of the sample: which clip this is, in any set."),
    "split": ("sc:Text", "The split the sample stands in."),
    "label": (["sc:Text", "cr:Label"], "The label as the annotation table writes it."),
    "label_index": (["sc:Integer", "cr:Label"], "The index of the label."),
    "dataset": ("sc:Text", "The data set whose manifest the sample was built by."),
    "release": ("sc:Text", "Its release."),
    "start_seconds": ("sc:Float", "Where the clip begins in the original video."),
    "end_seconds": ("sc:Float", "Where it ends there."),
    "fps": ("sc:Float", "Frames per second, as stored."),
    "num_frames": ("sc:Integer", "Frames, as stored."),
    "width_px": ("sc:Integer", "Width in pixels, as stored."),
    "height_px": ("sc:Integer", "Height in pixels, as stored."),
    "source_sha256": ("sc:Text", "sha256 of the source file's bytes."),
    "license": ("sc:Text", "What is on record about the licence of this clip."),
    "text": ("sc:Text", "The title its source gave it."),
}
LABEL_FIELDS: Final = ("label", "label_index")


def license_id(text: str | None) -> str | None:
    """The SPDX identifier that a licence text is, None for any other text."""
    wanted = (text or "").strip().casefold()
    return next((name for name in _LICENSES if name.casefold() == wanted), None)
