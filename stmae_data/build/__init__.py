"""From source files to a sealed shard set, in the order things happen: list, plan, work, seal. Read this first.

A build may be killed anywhere. Its plan is committed before work starts, each shard by the rename of its ledger, the set by `set.json`;
a rerun goes on from there and ends with the same bytes.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stmae_data import __version__, files
from stmae_data.build.plan import Plan, extend_plan, load_plan
from stmae_data.encode import Encoding, ffmpeg_executable, ffmpeg_version
from stmae_data.engines import run_tasks
from stmae_data.errors import SetError, SourceError
from stmae_data.manifest import Manifest
from stmae_data.records import set_folder
from stmae_data.shards import ShardInfo, count_outcomes, ledger_path, seal_set, shard_info
from stmae_data.sources import rows_for

__all__ = ["BuildReport", "BuildRequest", "build"]


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build, from where, how. `roots` and `annotations` default to what the manifest names."""

    workspace: Path
    manifest: Manifest
    roots: tuple[Path, ...] = ()
    annotations: tuple[Path, ...] = ()
    name: str | None = None
    splits: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    limit: int | None = None
    encoding: Encoding | None = None
    seed: int | None = None
    workers: int = 1
    is_dry_run: bool = False

    @property
    def set_name(self) -> str:
        """Name of the set: `name`, else the manifest's."""
        return self.name or self.manifest.name


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build came to; `counts` holds planned, written, dropped, failed and reasons {code: n}."""

    set_name: str
    folder: Path
    version: int
    digest: str
    counts: dict[str, Any]
    num_shards: int
    seconds: float
    num_internal_errors: int = 0

    def as_json(self) -> dict[str, Any]:
        """The `build` shape of FORMATS."""
        return {
            "set": self.set_name,
            "version": self.version,
            "digest": self.digest,
            **self.counts,
            "shards": self.num_shards,
            "seconds": round(self.seconds, 3),
        }

    def exit_code(self, *, is_strict: bool) -> int:
        """1 after an internal error, 3 when more than half (or, strict, any) was rejected, else 0."""
        rejected = self.counts["dropped"] + self.counts["failed"]
        if self.num_internal_errors:
            return 1
        return 3 if rejected > (0 if is_strict else self.counts["planned"] / 2) else 0


def build(request: BuildRequest, *, progress: Callable[[str, int, int], None] | None = None) -> BuildReport:
    """Build, resume or extend a set.

    Args:
        request: what to build.
        progress: told (stage, done, total) as rows are planned and clips finish.

    Raises:
        SourceError: nothing to read; SetError: the set stands already with other settings; Busy: somebody else builds it;
        StorageError: the disk; StmaeDataError: a task that cannot be done.
    """
    started = time.monotonic()
    folder = set_folder(request.workspace, request.set_name)
    encoding = request.encoding or Encoding(mode="layered", short_side_px=request.manifest.short_side_px)
    ffmpeg_executable()  # a missing tool stops the build before work starts
    listing = rows_for(
        request.manifest,
        roots=request.roots,
        annotations=request.annotations,
        splits=request.splits or None,
        classes=request.classes or None,
        limit=request.limit,
    )
    if not listing.rows:
        raise SourceError(
            f"There is nothing to build {request.set_name} from: no video was found for {request.manifest.name}; "
            "name its folders with --from and its tables with --annotations."
        )
    settings = {
        "manifest": request.manifest.name,
        "manifest_sha256": request.manifest.sha256,
        "encoding": encoding.mode,
        "short_side_px": encoding.short_side_px,
        "seed": request.manifest.seed if request.seed is None else request.seed,
        "ffmpeg": ffmpeg_version(),
    }
    if request.is_dry_run:
        return BuildReport(
            request.set_name, folder, 0, "", _no_counts(len(listing.rows)), 0, time.monotonic() - started
        )

    with files.lock(folder / "meta" / "LOCK", what=f"Set {request.set_name}"):
        _sweep(folder)
        if (folder / "meta" / "rewrite.json").exists():
            raise SetError(
                f"A rewrite of {request.set_name} was interrupted; finish it first: stmae-data dedup {request.set_name}"
            )
        plan = extend_plan(
            load_plan(folder),
            folder=folder,
            manifest=request.manifest,
            settings=settings,
            listing=listing,
            workers=request.workers,
            progress=progress,
        )
        try:
            internal_errors = _work(folder, plan, request, progress)
        except BaseException:
            _sweep(folder)  # the workers are dead by now; what was committed stays, what was half-written goes
            raise
        report = _seal(folder, plan, request, settings, encoding)
    return BuildReport(
        request.set_name,
        folder,
        report["version"],
        report["digest"],
        report["counts"],
        report["shards"],
        time.monotonic() - started,
        internal_errors,
    )


def _sweep(folder: Path) -> None:
    """Remove what a killed build left; safe under the lock."""
    for each in (folder, folder / "meta", folder / "meta" / "ledger", folder / "meta" / "fingerprints"):
        files.sweep_temp(each)


def _work(folder: Path, plan: Plan, request: BuildRequest, progress: Callable[[str, int, int], None] | None) -> int:
    """Do every planned shard that has no ledger yet; returns how many clips ended in an internal error."""
    todo = [name for name in plan.shards if not ledger_path(folder, name).exists()]
    total = sum(plan.shards.values())
    done = total - sum(plan.shards[name] for name in todo)

    def tick(clips: int) -> None:
        nonlocal done
        done += clips
        if progress is not None:
            progress("encode", done, total)

    if progress is not None:
        progress("encode", done, total)
    tasks = [{"folder": str(folder), "name": name, **plan.task_settings()} for name in todo]
    target = "stmae_data.build.work:build_shard"
    return sum(
        receipt["internal_errors"] for _, receipt in run_tasks(target, tasks, workers=request.workers, tick=tick)
    )


def _seal(
    folder: Path, plan: Plan, request: BuildRequest, settings: dict[str, Any], encoding: Encoding
) -> dict[str, Any]:
    """Write `set.json` from the ledgers; an unchanged set keeps its version."""
    shards = [shard_info(folder, name) for name in plan.shards]
    counts = count_outcomes([ledger_path(folder, name) for name in plan.shards])
    if counts["planned"] != plan.num_rows:
        raise SetError(
            f"{request.set_name}: {plan.num_rows} rows are planned but the ledgers hold {counts['planned']}; verify the set before using it."
        )
    previous = files.read_json(folder / "meta" / "set.json") if (folder / "meta" / "set.json").exists() else None
    version = _next_version(previous, shards)
    if previous is not None and version == previous["version"]:
        return {"version": version, "digest": previous["digest"], "counts": counts, "shards": len(shards)}
    digest = seal_set(
        folder,
        shards,
        name=request.set_name,
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
            "seed": settings["seed"],
            "shard_bytes": request.manifest.shard_bytes,
            "shard_count": len(shards),
        },
        counts=counts,
        parents=[],
        versions=_versions(),
        extra={"sources": [_source_line(request.manifest)]},
    )
    return {"version": version, "digest": digest, "counts": counts, "shards": len(shards)}


def _next_version(previous: dict[str, Any] | None, shards: Sequence[ShardInfo]) -> int:
    if previous is None:
        return 1
    known = {line["name"]: line["ledger_sha256"] for split in previous["splits"].values() for line in split["shards"]}
    is_same = known == {shard.name: shard.ledger_sha256 for shard in shards}
    return int(previous["version"]) + (0 if is_same else 1)


def _no_counts(planned: int) -> dict[str, Any]:
    return {"planned": planned, "written": 0, "dropped": 0, "failed": 0, "reasons": {}}


def _source_line(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "kind": manifest.kind,
        "license": manifest.license,
        "is_redistributable": manifest.is_redistributable,
        "citation": manifest.citation,
    }


def _versions() -> dict[str, str]:
    import av
    import duckdb

    return {
        "stmae": __version__,
        "python": platform.python_version(),
        "ffmpeg": ffmpeg_version(),
        "pyav": av.__version__,
        "duckdb": duckdb.__version__,
    }
