"""`stmae-data build`: from source files to a sealed shard set."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from stmae_cli import console
from stmae_cli.console import JsonFlag, WorkspaceOption

__all__ = ["build"]

HERE = Path()


def build(
    manifest: Annotated[
        str,
        typer.Argument(help="A shipped manifest (k400, k600, k700, k700-2020, ssv2, ava, in1k, web) or a TOML file."),
    ],
    source: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="Folders to read, or tars of a WebDataset, as 'x-{000000..000009}.tar'; several may be given.",
        ),
    ] = None,
    annotations: Annotated[
        list[Path] | None, typer.Option(help="Annotation tables: csv, json, txt or parquet.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the set; the manifest's unless given.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only these splits.")] = None,
    encode: Annotated[
        str | None, typer.Option(help="layered, lean, fast, copy or remux; image for sets of pictures.")
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            metavar="full|header",
            help="With --encode copy: header takes files at their header's word, decodes and hashes nothing; full unless given.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 2,
    engine: Annotated[
        str, typer.Option(help="local, or ray: tasks on this machine or on the cluster that RAY_ADDRESS names.")
    ] = "local",
    job: Annotated[
        str | None, typer.Option(metavar="K/N", help="Build only share K of N; the last job, or a plain rerun, seals.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="URL of an object store (s3://…, gs://…): the set stands there, the workspace keeps its books."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="At most this many rows in all: a fair draw, inside every larger one.")
    ] = None,
    classes: Annotated[list[str] | None, typer.Option(help="Only these classes.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the nested order; the manifest's unless given.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 3 when any clip was rejected.")] = False,
    retry_failed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[CODE…]",
            help="Also take up rows that failed for these reasons (without a code: for those that may pass, as timeouts); "
            "what succeeds moves behind the old shards.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be planned; write nothing.")] = False,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Build a verified shard set.

    The same command goes on with a build that was interrupted, and takes in what is new.

    Example: stmae-data build k400 --from /data/kinetics400 --workers 16

    Example: stmae-data build k400 --from /data/kinetics400 --job 3/8

    Example: stmae-data build web --from 'crawl-{000000..000009}.tar' --name crawl

    Example: stmae-data build web --from clips --retry-failed timeout oom

    Example: stmae-data build k400 --from /data/kinetics400 --store s3://bucket/sets
    """
    from stmae_data.build import BuildRequest, Job, reasons_of
    from stmae_data.build import build as run
    from stmae_data.encode import Encoding
    from stmae_data.manifest import load_manifest

    found = load_manifest(manifest)
    if encode == "image" and found.kind == "folder":
        found = dataclasses.replace(found, media_kind="image")
    side_px = found.picture_side_px if encode == "image" else found.short_side_px
    request = BuildRequest(
        workspace=workspace,
        manifest=found,
        roots=tuple(source or ()),
        annotations=tuple(annotations or ()),
        name=name,
        splits=tuple(split or ()),
        classes=tuple(classes or ()),
        limit=limit,
        # `--probe full` alone asks for nothing else than the manifest does.
        encoding=Encoding(encode or "layered", side_px, probe or "full")
        if encode is not None or probe not in (None, "full")
        else None,
        seed=seed,
        workers=workers,
        engine=engine,
        job=None if job is None else Job.parse(job),
        store=store,
        retry=frozenset() if retry_failed is None else reasons_of([each for each in retry_failed if each]),
        is_dry_run=dry_run,
    )
    with console.journal(workspace, "stmae-data build", {"set": request.set_name}), console.progress() as progress:
        report = run(request, progress=progress)
    if is_json:
        console.print_json(report.as_json())
    reasons = [[f"  {code}", count] for code, count in sorted(report.counts["reasons"].items())]
    rows = [[kind, report.counts[kind]] for kind in ("planned", "written", "dropped", "failed")]
    state = f"version {report.version}" if report.version else "would be planned" if dry_run else f"job {job}"
    console.table(f"{report.set_name} {state}", ["clips", "number"], [*rows, *reasons], is_json=is_json)
    if dry_run:
        console.done("Nothing was written; the set would stand in", report.folder, is_json=is_json)
        return
    if report.num_shards_left:
        owed = f"shards left to other jobs: {report.num_shards_left}"
        console.done(
            f"Job {job} of {report.set_name} is done; {owed}, then the set is sealed in", report.folder, is_json=is_json
        )
        raise typer.Exit(report.exit_code(is_strict=strict))
    console.done(f"Set {report.set_name} is sealed, digest {report.digest[:12]}, in", report.folder, is_json=is_json)
    raise typer.Exit(report.exit_code(is_strict=strict))
