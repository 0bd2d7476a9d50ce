"""A set: its ledgers, its shards, the `set.json` that seals it, and the only way to open it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stmae_data import files
from stmae_data.errors import SetError
from stmae_data.records import LEDGER_COLUMNS, SCHEMA_VERSION, set_folder
from stmae_data.stores import Store

__all__ = [
    "OWN_KEYS",
    "ShardInfo",
    "ShardSet",
    "commit_ledger",
    "fingerprint_path",
    "ledger_path",
    "on_a_store",
    "open_set",
    "seal_set",
    "set_digest",
    "shard_info",
    "shard_name",
    "shards_on_store",
    "store_url",
]


OWN_KEYS: Final = frozenset(
    {
        "schema_version",
        "name",
        "version",
        "digest",
        "created_from",
        "recipe",
        "splits",
        "counts",
        "parents",
        "versions",
        "seal_sha256",
    }
)
"""What `seal_set` writes itself; every other key of a seal is passed on by whoever seals the set anew."""


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One line of `set.json`."""

    name: str
    split: str
    sha256: str
    bytes: int
    samples: int
    seconds: float
    ledger_sha256: str


@dataclass(frozen=True, slots=True)
class ShardSet:
    """A sealed set: `folder` holds the tars, `seal` is the whole of `meta/set.json`."""

    folder: Path
    name: str
    version: int
    digest: str
    shards: tuple[ShardInfo, ...]
    seal: Mapping[str, Any]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, sorted."""
        return tuple(sorted(self.seal["splits"]))

    def of_split(self, split: str) -> tuple[ShardInfo, ...]:
        """Shards of one split in order.

        Raises:
            SetError: there is no such split.
        """
        found = tuple(shard for shard in self.shards if shard.split == split)
        if not found:
            raise SetError(f"Set {self.name} has no split {split!r}; it has {', '.join(self.splits)}.")
        return found

    def ledgers(self, split: str | None = None) -> list[Path]:
        """Paths of the ledgers, of one split or of all."""
        wanted = self.shards if split is None else self.of_split(split)
        return [ledger_path(self.folder, shard.name) for shard in wanted]


def shard_name(split: str, number: int) -> str:
    """`train-000017`: the stem of a shard's tar, ledger and fingerprints."""
    return f"{split}-{number:06d}"


def ledger_path(folder: Path, name: str) -> Path:
    """Where the ledger of shard `name` stands; its appearance is the shard's commit."""
    return folder / "meta" / "ledger" / f"{name}.parquet"


def count_outcomes(ledgers: Sequence[Path]) -> dict[str, Any]:
    """planned, written, dropped, failed and reasons {code: n} over ledgers."""
    query = "SELECT outcome, reason, count(*) AS n FROM book GROUP BY ALL ORDER BY ALL"
    kinds, reasons = dict.fromkeys(("written", "dropped", "failed"), 0), Counter[str]()
    for row in files.read_table(ledgers, query):
        kinds[row["outcome"]] += row["n"]
        if row["reason"] is not None:
            reasons[row["reason"]] += row["n"]
    return {"planned": sum(kinds.values()), **kinds, "reasons": dict(reasons)}


def fingerprint_path(folder: Path, name: str) -> Path:
    """Where the fingerprints of shard `name` stand."""
    return folder / "meta" / "fingerprints" / f"{name}.parquet"


def commit_ledger(
    folder: Path,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    tar_sha256: str | None = None,
    tar_bytes: int | None = None,
    point: str = "ledger",
) -> str:
    """Write the ledger of shard `name` in plan order; this rename is the shard's commit. Returns the ledger's sha256.

    The footer keeps the tar's sha256 and size (taken from the file where they are not given), so that sealing never reads a tar again.
    """
    path, tar = ledger_path(folder, name), folder / f"{name}.tar"
    metadata = {
        "tar_sha256": tar_sha256 or files.sha256_file(tar),
        "tar_bytes": str(tar.stat().st_size if tar_bytes is None else tar_bytes),
    }
    files.commit_table(path, rows, LEDGER_COLUMNS, point=point, order_by="plan_order, row_id", metadata=metadata)
    return files.sha256_file(path)


def shard_info(folder: Path, name: str) -> ShardInfo:
    """The `set.json` line of a committed shard, from its ledger alone.

    Raises:
        SetError: the ledger is missing or damaged.
    """
    path = ledger_path(folder, name)
    footer = files.read_table_metadata(path)
    query = """SELECT count(*) FILTER (outcome = 'written') AS samples,
               coalesce(sum(stored_seconds) FILTER (outcome = 'written'), 0) AS seconds FROM book"""
    totals = files.read_table(path, query)[0]
    return ShardInfo(
        name,
        name.rpartition("-")[0],
        footer["tar_sha256"],
        int(footer["tar_bytes"]),
        int(totals["samples"]),
        float(totals["seconds"]),
        files.sha256_file(path),
    )


def set_digest(shards: Iterable[ShardInfo]) -> str:
    """sha256 over the sorted lines `split name sha256` of all tars."""
    lines = sorted(f"{shard.split} {shard.name} {shard.sha256}" for shard in shards)
    return hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()


def seal_set(
    folder: Path,
    shards: Sequence[ShardInfo],
    *,
    name: str,
    version: int,
    created_from: Mapping[str, Any],
    recipe: Mapping[str, Any],
    counts: Mapping[str, Any],
    parents: Sequence[Mapping[str, Any]],
    versions: Mapping[str, str],
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Write `meta/set.json`, the last step of a build or rewrite; returns the set's digest."""
    splits: dict[str, Any] = {}
    for shard in sorted(shards, key=lambda each: (each.split, each.name)):
        split = splits.setdefault(shard.split, {"shards": [], "samples": 0, "seconds": 0.0})
        split["shards"].append(
            {
                "name": shard.name,
                "sha256": shard.sha256,
                "bytes": shard.bytes,
                "samples": shard.samples,
                "seconds": round(shard.seconds, 3),
                "ledger_sha256": shard.ledger_sha256,
            }
        )
        split["samples"] += shard.samples
        split["seconds"] = round(split["seconds"] + shard.seconds, 3)
    digest = set_digest(shards)
    document = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "version": version,
        "digest": digest,
        "created_from": created_from,
        "recipe": recipe,
        "splits": splits,
        "counts": counts,
        "parents": list(parents),
        "versions": versions,
        **(extra or {}),
    }
    document.pop("seal_sha256", None)
    document["seal_sha256"] = files.sha256_text(files.json_text(document))  # so that no flipped bit goes unnoticed
    files.commit_json(folder / "meta" / "set.json", document, point="seal")
    return digest


def store_url(folder: Path) -> str | None:
    """The store a set stands on, as `meta/store.json` says; None where it stands in the folder itself."""
    path = folder / "meta" / "store.json"
    return str(files.read_json(path)["url"]) if path.is_file() else None


def on_a_store(name: str, url: str) -> SetError:
    """What a command says that wants the tars of a set that stands on a store."""
    return SetError(
        f"Set {name} stands on {url} and this workspace has its books alone, so its tars cannot be read or changed here; "
        f"copy all of {url} to sets/{name} of another workspace and run the same command there."
    )


def open_set(workspace: Path, name: str, *, books_only: bool = False) -> ShardSet:
    """Open a sealed set of the workspace; with `books_only` its tars need not be here, as those of a set on a store are not.

    Raises:
        SetError: no such set, not sealed, sealed by something else, or shards missing or of another size.
    """
    folder = set_folder(workspace, name)
    path = folder / "meta" / "set.json"
    if not folder.is_dir():
        known = sorted(each.name for each in folder.parent.iterdir()) if folder.parent.is_dir() else []
        raise SetError(
            f"There is no set {name!r} in {workspace}; it has {', '.join(known) or 'none'}. Build it: stmae-data build."
        )
    if not path.is_file():
        raise SetError(
            f"Set {name} has no meta/set.json, so its build has not finished; run the same stmae-data build again."
        )
    seal = files.read_json(path)
    try:
        shards = tuple(
            ShardInfo(
                line["name"],
                split,
                line["sha256"],
                line["bytes"],
                line["samples"],
                line["seconds"],
                line["ledger_sha256"],
            )
            for split, content in sorted(seal["splits"].items())
            for line in content["shards"]
        )
        found = ShardSet(folder, seal["name"], seal["version"], seal["digest"], shards, seal)
    except (KeyError, TypeError) as error:
        raise SetError(
            f"{path} lacks {error}; it was not written by this program or is damaged: verify the set."
        ) from error
    url = store_url(folder)
    for shard in shards:
        tar = folder / f"{shard.name}.tar"
        is_named = re.fullmatch(r"[a-z]+-\d{6}", shard.name) is not None
        if is_named and url is not None and not tar.is_file():
            if not books_only:
                raise on_a_store(name, url)
            continue
        if not is_named or not tar.is_file():
            raise SetError(
                f"Set {name}: shard {shard.name}.tar is missing; rebuild it: stmae-data build, or verify the set."
            )
        if tar.stat().st_size != shard.bytes:
            raise SetError(
                f"Set {name}: {shard.name}.tar has {tar.stat().st_size} bytes, set.json says {shard.bytes}; it was cut or changed: verify the set."
            )
    return found


def shards_on_store(found: ShardSet) -> frozenset[str]:
    """Names of the shards that do not stand in the set's folder but on its store, after their sizes there have been checked.

    Raises:
        SetError: one is missing there, or has another size.
        StorageError: the store does not answer.
    """
    away = [shard for shard in found.shards if not (found.folder / f"{shard.name}.tar").is_file()]
    store = Store.of(found.folder) if away else None
    if store is None:
        return frozenset()
    there = store.names()
    for shard in away:
        size = there.get(f"{shard.name}.tar")
        if size != shard.bytes:
            raise SetError(
                f"{store.url}/{shard.name}.tar {'is missing' if size is None else f'has {size} bytes'}, set.json says {shard.bytes} bytes; "
                f"bring the books up to date (stmae-data fetch {store.url}), or verify the set."
            )
    return frozenset(shard.name for shard in away)
