"""`stmae-data card | export | push | doctor`: from a sealed set to other people and other tools."""

from pathlib import Path
from typing import Annotated

import typer

from stmae_cli import console
from stmae_cli.console import JsonFlag, WorkspaceOption

__all__ = ["app"]

app = console.make_app("Publishing.")

HERE = Path()


@console.command(app, "card")
def card(
    name: Annotated[str, typer.Argument(metavar="SET", help="The set.")],
    person: Annotated[list[str] | None, typer.Option(help="A person who made the set; several may be given.")] = None,
    organization: Annotated[list[str] | None, typer.Option(help="An organization that made it.")] = None,
    url: Annotated[str | None, typer.Option(help="The page on which the set is published.")] = None,
    published: Annotated[str | None, typer.Option(help="When it was published, YYYY-MM-DD.")] = None,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Write the data card and Croissant metadata of a set.

    README.md (with the Hub's front matter) and croissant.json (Croissant 1.1) from what is on record; unknown stays out.

    Example: stmae-data card k400-clean --organization "Motion Lab" --url https://example.org/k400-clean
    """
    from stmae_data.publish import Authors, write_card
    from stmae_data.shards import store_url

    authors = Authors(tuple(person or ()), tuple(organization or ()), url, published)
    with console.journal(workspace, "stmae-data card", {"set": name}):
        made = write_card(workspace, name, authors)
    if is_json:
        console.print_json(
            {"set": name, "readme": str(made.readme), "croissant": str(made.croissant), "unsaid": list(made.unsaid)}
        )
    if made.unsaid:
        console.say(f"Croissant also asks for what is not on record here: {', '.join(made.unsaid)}.")
    if store_url(made.readme.parent) is not None:
        console.say(f"The next stmae-data build of {name} puts them on its store.")
    console.done(f"Cards: {made.readme} and", made.croissant, is_json=is_json)


@console.command(app, "export")
def export(
    reference: Annotated[str, typer.Argument(metavar="SET", help="SET[:SPLIT][/SELECTION]; split train unless said.")],
    format: Annotated[str, typer.Option("--format", help="csv, parquet, kinetics or videomae.")],
    out: Annotated[Path | None, typer.Option(help="The file; in exports/ of the workspace unless given.")] = None,
    unpack: Annotated[
        bool,
        typer.Option("--unpack", help="videomae: write the stored clips as files beside the list, and list these."),
    ] = False,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Write a list of clips for other tools.

    Text cells that a spreadsheet would run get a leading apostrophe.

    Example: stmae-data export k400:val --format kinetics --out val.csv
    """
    from stmae_data.publish import export as run
    from stmae_data.records import SetRef

    with console.journal(workspace, "stmae-data export", {"set": reference, "format": format}):
        made = run(workspace, SetRef.parse(reference), format=format, out=out, is_unpacked=unpack)
    if is_json:
        console.print_json(made.as_json())
    console.done(f"{made.num_rows} clips listed in", made.path, is_json=is_json)


@console.command(app, "push")
def push(
    name: Annotated[str, typer.Argument(metavar="SET", help="The set.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME of a data set repository on the Hub.")],
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; private unless said.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and list what would be sent; send nothing.")
    ] = False,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Bring a set to the Hub, if it may be passed on.

    Only a verified set goes: shards, then ledgers, set.json last (extra: stmae[hub]).

    The history of a repository keeps what it ever held; after a takedown its owner has to squash it.

    Example: stmae-data push my-clips my-group/my-clips --dry-run
    """
    from stmae_data.publish import push as run

    told = {"set": name, "to": repository, "dry_run": dry_run}
    with console.journal(workspace, "stmae-data push", told), console.progress() as progress:
        made = run(workspace, name, repository, is_private=not public, is_dry_run=dry_run, progress=progress)
    if is_json:
        console.print_json(made.as_json())
    if dry_run:
        console.table("Would be sent, in this order", ["file"], [[sent] for sent in made.sent], is_json=is_json)
        console.done(f"Nothing was sent; {made.bytes_sent:,} bytes would go to {repository}.", None, is_json=is_json)
        return
    counted = f"{len(made.sent)} files ({made.bytes_sent:,} bytes) sent, {len(made.kept)} were there already"
    console.done(f"Set {name} version {made.version} stands in {repository}: {counted}.", None, is_json=is_json)


@console.command(app, "doctor")
def doctor(workspace: WorkspaceOption = HERE, is_json: JsonFlag = False) -> None:
    """Look at whether this machine is fit for the work.

    Software, limits, disk; exit 1 when something needed is missing.

    Example: stmae-data doctor -w /data/workspace
    """
    from stmae_data.doctor import examine

    found = examine(workspace)
    if is_json:
        console.print_json(found.as_json())
    rows = [[check.state, check.name, check.found, check.next_step] for check in found.checks]
    console.table("This machine", ["", "what", "found", "next step"], rows, is_json=is_json)
    missing = [check.name for check in found.checks if check.state == "missing"]
    told = f"Missing: {', '.join(missing)}; the table says what to do." if missing else "Everything needed is there."
    console.done(told, None, is_json=is_json)
    raise typer.Exit(0 if found.ok else 1)
