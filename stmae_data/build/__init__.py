"""From source files to a sealed shard set, in the order things happen: list, plan, work, seal. Read this first.

A build may be killed anywhere. Its plan is committed before work starts, each shard by the rename of its ledger, the set by `set.json`;
a rerun goes on from there and ends with the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.build.jobs import job_lock
from stmae_data.build.plan import Plan, extend_plan, load_plan, refuse_other_settings
from stmae_data.build.remote import Outpost, outpost
from stmae_data.build.retry import (
    end_retry,
    has_retry,
    plan_retry,
    reasons_of,
    retry_run_id,
    retry_shards,
    settle_retry,
)
from stmae_data.build.seal import seal_build, sealed_shards
from stmae_data.encode import Encoding, ffmpeg_executable, ffmpeg_version
from stmae_data.engines import check_engine, run_tasks
from stmae_data.errors import Reason, SetError, SourceError, UsageError
from stmae_data.manifest import Manifest
from stmae_data.records import Job, set_folder
from stmae_data.shards import count_outcomes, ledger_path, store_url
from stmae_data.sources import SourceListing, rows_for

__all__ = ["BuildReport", "BuildRequest", "Job", "build", "reasons_of"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build, from where, how. `roots` and `annotations` default to what the manifest names; rows that ended with a reason
    of `retry` are taken up again; with `store` (a URL of fsspec) the set stands under it, and the workspace keeps its books alone."""

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
    engine: str = "local"
    job: Job | None = None
    store: str | None = None
    retry: frozenset[Reason] = frozenset()
    is_dry_run: bool = False

    @property
    def set_name(self) -> str:
        """Name of the set: `name`, else the manifest's."""
        return self.name or self.manifest.name


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build came to; `counts` holds planned, written, dropped, failed and reasons {code: n}.

    A job that is not the last of its set reports its own share: version 0, no digest, and how many shards other jobs still owe.
    """

    set_name: str
    folder: Path
    version: int
    digest: str
    counts: dict[str, Any]
    num_shards: int
    seconds: float
    num_internal_errors: int = 0
    num_shards_left: int = 0

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


def build(request: BuildRequest, *, progress: Progress | None = None) -> BuildReport:
    """Build, resume or extend a set; take up what failed when asked; as one job of several, build a share of it.

    Args:
        request: what to build.
        progress: told (stage, done, total) as rows are planned and clips finish.

    Raises:
        SourceError: nothing to read; SetError: the set stands already with other settings; Busy: somebody else builds it;
        StorageError: the disk; UsageError: a retry as a job; StmaeDataError: a task that cannot be done.
    """
    if request.job is not None and request.retry:
        raise UsageError("A retry is done by one command: leave out --job or --retry-failed.")
    started = time.monotonic()
    folder = set_folder(request.workspace, request.set_name)
    if request.job is not None and (request.store or store_url(folder)) is not None:
        raise UsageError(
            "A set on a store is built by one command: leave out --job, or --store and choose another --name."
        )
    encoding = _encoding(request)
    ffmpeg_executable()  # a missing tool stops the build before work starts
    check_engine(request.engine)
    settings = _settings(request, encoding)
    if request.is_dry_run:
        planned = len(_list(request).rows)
        return BuildReport(request.set_name, folder, 0, "", _no_counts(planned), 0, time.monotonic() - started)
    if request.job is not None:
        return _build_share(folder, request, request.job, settings, encoding, started, progress)

    listing = _list(request)
    with (
        files.lock(folder / "meta" / "LOCK", what=f"Set {request.set_name}"),
        outpost(request.store, folder) as store,
    ):
        _sweep(folder)
        _refuse_unfinished_rewrite(folder)
        try:
            plan, internal_errors = _plan_and_work(folder, request, settings, listing, store, progress)
        except BaseException:
            _sweep(folder)  # the workers are dead by now; what was committed stays, what was half-written goes
            raise
        _sweep(folder)  # of a worker that died, whose task another one did
        report = seal_build(
            folder, plan, name=request.set_name, manifest=request.manifest, settings=settings, encoding=encoding
        )
        end_retry(folder)
        if store is not None:
            store.finish()
    return _report(folder, request, report, started, internal_errors)


def _build_share(
    folder: Path,
    request: BuildRequest,
    job: Job,
    settings: Mapping[str, Any],
    encoding: Encoding,
    started: float,
    progress: Progress | None,
) -> BuildReport:
    """Build one job's shards of the generation under way; the first job plans it, the last one seals.

    Nothing is swept before the end: half-written files may belong to another job.
    """
    with job_lock(folder / "meta" / "LOCK", job, what=f"Set {request.set_name}") as step:
        with step():
            plan = _shared_plan(folder, request, settings, progress)
            sealed = sealed_shards(folder)
        share = {name: plan.shards[name] for name in job.share([name for name in plan.shards if name not in sealed])}
        task = {"plan": "plan.parquet", **plan.task_settings()}
        internal_errors = _run(folder, share, task, request, None, progress)
        with step():
            left = [name for name in plan.shards if not ledger_path(folder, name).exists()]
            if not left:
                # Copies that were waited for and came; codes to retry are named to one command, never to a job.
                if plan.waiting and plan_retry(
                    folder,
                    plan,
                    listing=_list(request),
                    reasons=(),
                    manifest=request.manifest,
                    workers=request.workers,
                    progress=progress,
                ):
                    internal_errors += _retry(folder, plan, request, None, progress)
                    plan = load_plan(folder) or plan
                _sweep(folder)
                report = seal_build(
                    folder, plan, name=request.set_name, manifest=request.manifest, settings=settings, encoding=encoding
                )
                end_retry(folder)
                return _report(folder, request, report, started, internal_errors)
    counts = count_outcomes([ledger_path(folder, name) for name in share])
    seconds = time.monotonic() - started
    return BuildReport(request.set_name, folder, 0, "", counts, len(share), seconds, internal_errors, len(left))


def _shared_plan(folder: Path, request: BuildRequest, settings: Mapping[str, Any], progress: Progress | None) -> Plan:
    """The plan all jobs work on: it grows only while nothing is under way."""
    _refuse_unfinished_rewrite(folder)
    if has_retry(folder):
        raise SetError(f"A retry of {folder.name} was interrupted; finish it first: run its build without --job.")
    plan = load_plan(folder)
    if plan is not None:
        refuse_other_settings(plan, settings, folder=folder)
        if not plan.shards.keys() <= sealed_shards(folder):
            return plan
    return extend_plan(
        plan,
        folder=folder,
        manifest=request.manifest,
        settings=dict(settings),
        listing=_list(request),
        workers=request.workers,
        progress=progress,
    )


def _report(
    folder: Path, request: BuildRequest, sealed: Mapping[str, Any], started: float, internal_errors: int
) -> BuildReport:
    return BuildReport(
        request.set_name,
        folder,
        sealed["version"],
        sealed["digest"],
        sealed["counts"],
        sealed["shards"],
        time.monotonic() - started,
        internal_errors,
    )


def _plan_and_work(
    folder: Path,
    request: BuildRequest,
    settings: Mapping[str, Any],
    listing: SourceListing,
    store: Outpost | None,
    progress: Progress | None,
) -> tuple[Plan, int]:
    """Finish what an earlier build left, plan and work what is new, then take up what failed.

    Returns:
        The plan as it stands then, every shard of it committed; and how many clips ended in an internal error.
    """
    errors = 0
    plan = load_plan(folder)
    was_interrupted = has_retry(folder)
    if plan is not None:
        refuse_other_settings(plan, settings, folder=folder)
        errors += _work(folder, plan, request, store, progress)
    if plan is not None and was_interrupted:
        errors += _retry(folder, plan, request, store, progress)
        plan = load_plan(folder)
    plan = extend_plan(
        plan,
        folder=folder,
        manifest=request.manifest,
        settings=dict(settings),
        listing=listing,
        workers=request.workers,
        progress=progress,
    )
    errors += _work(folder, plan, request, store, progress)
    # An interrupted retry was this command's own: taking its failures up once more would end with other bytes.
    if not was_interrupted and plan_retry(
        folder,
        plan,
        listing=listing,
        reasons=request.retry,
        manifest=request.manifest,
        workers=request.workers,
        progress=progress,
    ):
        errors += _retry(folder, plan, request, store, progress)
        plan = load_plan(folder) or plan
    return plan, errors


def _list(request: BuildRequest) -> SourceListing:
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
    encoding, first = _encoding(request), next((row for row in listing.rows if row.is_cut), None)
    if encoding.keeps_source and first is not None:  # a plan of such rows could be neither worked nor replaced
        raise UsageError(
            f"Encoding {encoding.mode!r} keeps files whole and cannot cut a span, as {request.manifest.name} asks of "
            f"{first.source_uri} and others; use layered, lean or fast."
        )
    return listing


def _encoding(request: BuildRequest) -> Encoding:
    manifest = request.manifest
    if manifest.media_kind == "image":
        found = request.encoding or Encoding(mode="image", short_side_px=manifest.picture_side_px)
    else:
        found = request.encoding or Encoding(mode="layered", short_side_px=manifest.short_side_px)
    if found.is_of_pictures != (manifest.media_kind == "image"):
        raise UsageError(
            f"{manifest.name} holds {manifest.media_kind}s, which encoding {found.mode!r} cannot store; leave --encode out."
        )
    return found


def _settings(request: BuildRequest, encoding: Encoding) -> dict[str, Any]:
    """What all shards of a set are made with; a set that stands with others is not touched."""
    return {
        "manifest": request.manifest.name,
        "manifest_sha256": request.manifest.sha256,
        "encoding": encoding.mode,
        "short_side_px": encoding.short_side_px,
        "probe_level": encoding.probe_level,
        "seed": request.manifest.seed if request.seed is None else request.seed,
        "ffmpeg": ffmpeg_version(),
        **({"pillow": metadata.version("pillow")} if encoding.is_of_pictures else {}),
    }


def _sweep(folder: Path) -> None:
    """Remove what a killed build left; safe under the lock."""
    for each in (folder, folder / "meta", folder / "meta" / "ledger", folder / "meta" / "fingerprints"):
        files.sweep_temp(each)


def _refuse_unfinished_rewrite(folder: Path) -> None:
    if (folder / "meta" / "rewrite.json").exists():
        raise SetError(f"A rewrite of {folder.name} was interrupted; finish it first: stmae-data dedup {folder.name}")


def _work(folder: Path, plan: Plan, request: BuildRequest, store: Outpost | None, progress: Progress | None) -> int:
    """Do every planned shard that has no ledger yet; returns how many clips ended in an internal error."""
    return _run(folder, plan.shards, {"plan": "plan.parquet", **plan.task_settings()}, request, store, progress)


def _retry(folder: Path, plan: Plan, request: BuildRequest, store: Outpost | None, progress: Progress | None) -> int:
    """Do the shards of a planned retry, then move what was recovered."""
    settings = {**plan.task_settings(), "plan": "retry.parquet", "run_id": retry_run_id(folder)}
    errors = _run(folder, retry_shards(folder), settings, request, store, progress)
    settle_retry(folder)
    return errors


def _run(
    folder: Path,
    shards: Mapping[str, int],
    settings: Mapping[str, Any],
    request: BuildRequest,
    store: Outpost | None,
    progress: Progress | None,
) -> int:
    todo = [name for name in shards if not ledger_path(folder, name).exists()]
    if not todo:
        return 0
    total = sum(shards.values())
    done = total - sum(shards[name] for name in todo)

    def tick(clips: int) -> None:
        nonlocal done
        done += clips
        if progress is not None:
            progress("encode", done, total)

    tick(0)
    tasks = [{"folder": str(folder), "name": name, **settings} for name in todo]
    target = "stmae_data.build.work:build_shard"
    receipts = run_tasks(target, tasks, workers=request.workers, tick=tick, engine=request.engine)
    if store is not None:
        store.send_plan()
    errors = 0
    for number, receipt in receipts:
        errors += receipt["internal_errors"]
        if store is not None:
            store.send_shard(todo[number])
    return errors


def _no_counts(planned: int) -> dict[str, Any]:
    return {"planned": planned, "written": 0, "dropped": 0, "failed": 0, "reasons": {}}
