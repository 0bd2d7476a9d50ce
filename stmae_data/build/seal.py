"""The last step of a build: `set.json` from the ledgers."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from stmae_data import __version__, files
from stmae_data.build.plan import Plan
from stmae_data.build.reconcile import count_failed
from stmae_data.encode import Encoding, ffmpeg_version
from stmae_data.errors import SetError
from stmae_data.manifest import Manifest
from stmae_data.shards import OWN_KEYS, ShardInfo, count_outcomes, seal_set, shard_info

__all__ = ["seal_build", "sealed_shards"]


def sealed_shards(folder: Path) -> frozenset[str]:
    """Names of the shards that `set.json` lists; none before the first seal."""
    return frozenset(_known(_previous(folder)))


def seal_build(
    folder: Path, plan: Plan, *, name: str, manifest: Manifest, settings: Mapping[str, Any], encoding: Encoding
) -> dict[str, Any]:
    """Write `set.json` from the ledgers; a set whose ledgers are as they were keeps its version.

    Returns:
        {"version", "digest", "counts", "shards"}.

    Raises:
        SetError: a ledger is missing, or the ledgers do not hold every planned row once.
    """
    shards = [shard_info(folder, each) for each in plan.shards]
    counts = count_outcomes(plan.ledgers(folder))
    if counts["planned"] != plan.num_rows:
        raise SetError(
            f"{name}: {plan.num_rows} rows are planned but the ledgers hold {counts['planned']}; verify the set before using it."
        )
    count_failed(folder, plan.ledgers(folder))
    previous = _previous(folder)
    version = _next_version(previous, shards)
    if previous is not None and version == previous["version"]:
        return {"version": version, "digest": previous["digest"], "counts": counts, "shards": len(shards)}
    digest = seal_set(
        folder,
        shards,
        name=name,
        version=version,
        created_from={
            "manifest": settings["manifest"],
            "manifest_sha256": settings["manifest_sha256"],
            "plan_sha256": files.sha256_file(folder / "meta" / "plan.parquet"),
        },
        recipe={
            "encoding": encoding.mode,
            "layout": encoding.layout,
            "profile": encoding.mode,
            "short_side_px": encoding.short_side_px,
            "probe_level": encoding.probe_level,
            "seed": settings["seed"],
            "shard_bytes": manifest.shard_bytes,
            "shard_count": len(shards),
        },
        counts=counts,
        parents=previous["parents"] if previous else [],
        versions=_versions(encoding),
        extra={
            **{key: value for key, value in (previous or {}).items() if key not in OWN_KEYS},
            "sources": [_source_line(manifest)],
        },
    )
    return {"version": version, "digest": digest, "counts": counts, "shards": len(shards)}


def _previous(folder: Path) -> dict[str, Any] | None:
    path = folder / "meta" / "set.json"
    found: dict[str, Any] | None = files.read_json(path) if path.exists() else None
    return found


def _known(seal: Mapping[str, Any] | None) -> dict[str, str]:
    splits: Iterable[Mapping[str, Any]] = seal["splits"].values() if seal is not None else ()
    return {line["name"]: line["ledger_sha256"] for split in splits for line in split["shards"]}


def _next_version(previous: dict[str, Any] | None, shards: Iterable[ShardInfo]) -> int:
    if previous is None:
        return 1
    is_same = _known(previous) == {shard.name: shard.ledger_sha256 for shard in shards}
    return int(previous["version"]) + (0 if is_same else 1)


def _source_line(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "kind": manifest.kind,
        "license": manifest.license,
        "is_redistributable": manifest.is_redistributable,
        "citation": manifest.citation,
        **({"synonyms": dict(sorted(manifest.label_synonyms.items()))} if manifest.label_synonyms else {}),
    }


def _versions(encoding: Encoding) -> dict[str, str]:
    import av
    import duckdb

    pictures = {"pillow": metadata.version("pillow")} if encoding.is_of_pictures else {}
    return {
        **pictures,
        "stmae": __version__,
        "python": platform.python_version(),
        "ffmpeg": ffmpeg_version(),
        "pyav": av.__version__,
        "duckdb": duckdb.__version__,
    }
