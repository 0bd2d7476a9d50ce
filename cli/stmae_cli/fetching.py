"""`stmae-data fetch`: official parts, lists of addresses, YouTube ids, books of sets on stores."""

import re
from pathlib import Path
from typing import Annotated

import typer

from stmae_cli import console
from stmae_cli.console import JsonFlag, WorkspaceOption

__all__ = ["fetch"]

HERE = Path()


def fetch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A manifest (k400, k600, k700-2020, ava, FILE.toml), a list (csv, tsv, txt, json, jsonl, parquet), or a set on a "
            "store (s3://bucket/sets/k400): its books, so that training reads it there.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Folder below raw/; the manifest's or list's own unless given.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="A mirror of the release, in place of its official address.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only these splits of a release.")] = None,
    classes: Annotated[
        list[str] | None, typer.Option(help="Only these classes, where archives are named after one.")
    ] = None,
    tables: Annotated[bool, typer.Option("--tables", help="Only the annotation tables of a release.")] = False,
    limit: Annotated[
        int | None, typer.Option(help="At most this many archives of each split, or addresses of a list.")
    ] = None,
    job: Annotated[str | None, typer.Option(help="k/n: only this share; n jobs may run beside each other.")] = None,
    workers: Annotated[int, typer.Option(help="Downloads at a time, at most two from one host.")] = 4,
    max_bytes: Annotated[
        int | None, typer.Option(help="Bytes a file may have; 1 GiB in lists, 64 GiB in releases.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds an address may take, tries included; 900 in lists, a day in releases.")
    ] = None,
    port: Annotated[list[int] | None, typer.Option(help="Ports allowed beside 80 and 443.")] = None,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Connect to addresses of this machine and network too; recorded.")
    ] = False,
    retry_failed: Annotated[
        list[str] | None, typer.Option(help="Codes to try again; what may pass by itself is tried again anyway.")
    ] = None,
    cookies: Annotated[
        Path | None, typer.Option(help="A Netscape file of cookies for YouTube; a copy is used.")
    ] = None,
    per_hour: Annotated[float, typer.Option(help="Videos asked of YouTube in an hour, at most.")] = 60.0,
    yt_dlp: Annotated[Path | None, typer.Option(help="The yt-dlp program; the installed module unless given.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 3 when any address was not fetched.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be fetched; write nothing.")] = False,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Fetch a release, addresses or YouTube ids into raw/.

    The same command goes on where it was stopped.

    Example: stmae-data fetch videos.csv --name web
    """
    from stmae_data.errors import UsageError
    from stmae_data.fetch import FetchRequest
    from stmae_data.fetch import fetch as run
    from stmae_data.records import Job

    if re.match(r"(?!https?:)[a-z0-9]+://", source):
        _fetch_set(source, workspace, is_dry_run=dry_run, is_json=is_json)
        return
    for option, value in (
        ("--limit", limit),
        ("--workers", workers),
        ("--max-bytes", max_bytes),
        ("--per-hour", per_hour),
        ("--deadline", deadline),
    ):
        if value is not None and value <= 0:
            raise UsageError(f"{option} is {value}, wanted more than 0.")
    if allow_private:
        console.say(
            "Warning: --allow-private lets a list reach this machine and network; use it only with lists you trust."
        )
    request = FetchRequest(
        workspace=workspace,
        source=source,
        name=name,
        base_url=base_url,
        splits=tuple(split or ()),
        classes=tuple(classes or ()),
        limit=limit,
        job=Job.parse(job) if job else Job(),
        workers=workers,
        max_bytes=max_bytes,
        deadline_seconds=deadline,
        ports=tuple(port or ()),
        allow_private=allow_private,
        is_tables_only=tables,
        retry_failed=tuple(retry_failed or ()),
        cookies=cookies,
        per_hour=per_hour,
        youtube_program=(str(yt_dlp.absolute()),) if yt_dlp else (),
        is_dry_run=dry_run,
    )
    arguments = {"source": Path(source).name, "name": name, "job": job, "allow_private": allow_private}
    with console.journal(workspace, "stmae-data fetch", arguments), console.progress() as progress:
        report = run(request, progress=progress)
    if is_json:
        console.print_json(report.as_json())
    rows = [[kind, count] for kind, count in report.counts.items()]
    rows += [[f"  {code}", count] for code, count in report.reasons.items()]
    console.table(f"{report.name}: {report.num_bytes:,} bytes", ["files", "number"], rows, is_json=is_json)
    if dry_run:
        console.done("Nothing was written; the files would stand in", report.folder, is_json=is_json)
        return
    if report.stopped is not None:
        console.say(
            f"Stopped at {report.stopped}: YouTube lets no more through for now, so {report.counts['pending']} ids were not tried; "
            "run the same command again some hours later, with a lower --per-hour."
        )
    if report.reasons:
        console.say(f"What became of every address and why: {report.folder / 'fetched.parquet'}")
    console.done(
        f"{report.counts['fetched']} of {report.counts['planned']} fetched, in", report.folder, is_json=is_json
    )
    raise typer.Exit(report.exit_code(is_strict=strict))


def _fetch_set(url: str, workspace: Path, *, is_dry_run: bool, is_json: bool) -> None:
    from stmae_data.build.remote import fetch_set
    from stmae_data.errors import UsageError

    if is_dry_run:
        raise UsageError("The books of a set are small and are fetched at once; leave out --dry-run.")
    with console.journal(workspace, "stmae-data fetch", {"source": url}):
        found = fetch_set(url, workspace)
    if is_json:
        console.print_json(
            {"set": found.name, "version": found.version, "digest": found.digest, "store": url.rstrip("/")}
        )
    console.done(f"The books of {found.name}, version {found.version}:", found.folder, is_json=is_json)
