"""`stmae-data remove | fingerprint`: what is done to sets that stand already."""

import datetime
from pathlib import Path
from typing import Annotated

import typer

from stmae_cli import console
from stmae_cli.console import JsonFlag, WorkspaceOption

__all__ = ["LISTS", "app"]

app = console.make_app("Sets that stand.")

LISTS = ("--ids", "--urls", "--uploader", "--hashes")
"""Options of these commands that take several values at once."""

HERE = Path()


@console.command(app, "remove")
def remove(
    sets: Annotated[list[str] | None, typer.Argument(help="Sets; every set of the workspace unless given.")] = None,
    ids: Annotated[
        list[str] | None, typer.Option(help="Clip ids, platform ids (all pieces of a video), or a file of them.")
    ] = None,
    urls: Annotated[list[str] | None, typer.Option(help="Addresses, or a file of them.")] = None,
    uploader: Annotated[list[str] | None, typer.Option(help="Ids of uploaders or channels, as in the ledgers.")] = None,
    hashes: Annotated[
        list[str] | None, typer.Option(help="sha256 of source or stored bytes, or a file of them, one a line.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; decisions and tombstones keep it.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go; write nothing.")] = False,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Take clips down, out of every set.

    The same bytes under any other id go too; later builds, of any set of the workspace, take in nothing that is named here.

    Only shards that hold such clips are rewritten, each set gets a new version. Sets to look at come first, the lists after them.

    Example: stmae-data remove --ids dQw4w9WgXcQ --reason "asked by the uploader"
    """
    from stmae_data.remove import read_wanted
    from stmae_data.remove import remove as run

    wanted = read_wanted(ids=ids or (), urls=urls or (), uploaders=uploader or (), hashes=hashes or ())
    told = {"sets": sets, "named": len(wanted.pairs()), "reason": reason, "dry_run": dry_run}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with console.journal(workspace, "stmae-data remove", told), console.progress() as progress:
        report = run(
            workspace, wanted, reason=reason, sets=tuple(sets or ()), dry_run=dry_run, removed_at=now, progress=progress
        )
    if is_json:
        console.print_json(report.as_json())
    console.table(
        "Would go" if dry_run else "Removed", ["set", "clip"], [list(each) for each in report.clips], is_json=is_json
    )
    if report.not_found:
        console.say(f"Nothing is known of {len(report.not_found)}: {', '.join(report.not_found[:10])}")
    pages = [path for path in report.copies if path.suffix == ".html"]
    copies = [path for path in report.copies if path not in pages]
    if copies:
        console.say(f"Files on this disk still hold them, yours to delete ({len(copies)}): {copies[0]} first")
    if pages:
        console.say(f"Pages still show pictures of them; make them again or delete them: {', '.join(map(str, pages))}")
    count = _counted(len(report.clips), "clip")
    count += f" and {_counted(report.num_barred, 'row')} that had not come in" if report.num_barred else ""
    if dry_run:
        console.done(f"Nothing was written; {count} would go.", None, is_json=is_json)
        return
    versions = ", ".join(f"{each.set_name} version {each.version}" for each in report.sets) or "no set changed"
    before = f"; {_counted(report.num_before, 'row')} went before" if report.num_before else ""
    console.done(f"Removed: {count}{before}; {versions}.", None, is_json=is_json)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@console.command(app, "fingerprint")
def fingerprint(
    name: Annotated[str, typer.Argument(metavar="SET", help="The set.")],
    workers: Annotated[int, typer.Option(help="Worker processes; they change speed alone.")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what is to do; write nothing.")] = False,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Make frame hashes again from the stored clips.

    For a set that lacks them or has those of an older algorithm.

    Example: stmae-data fingerprint k400 --workers 16
    """
    from stmae_data.rehash import fingerprint_set

    told = {"set": name, "dry_run": dry_run}
    with console.journal(workspace, "stmae-data fingerprint", told), console.progress() as progress:
        report = fingerprint_set(workspace, name, workers=workers, dry_run=dry_run, progress=progress)
    if is_json:
        console.print_json(report.as_json())
    if report.undecodable:
        rows = [[clip_id] for clip_id in report.undecodable]
        console.table("stored undecoded, do not decode: they compare with nothing", ["clip"], rows, is_json=is_json)
    verb = "would be made" if dry_run else "were made"
    console.done(
        f"Fingerprints of {report.num_made} clips {verb}, {report.num_kept} are current ({report.algorithm}), in",
        report.folder / "meta" / "fingerprints",
        is_json=is_json,
    )
