"""`stmae-data`: from video files to verified shard sets. Each command parses, calls one function, prints."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stmae_cli import console, publishing, removal
from stmae_cli.building import build
from stmae_cli.console import JsonFlag, WorkspaceOption
from stmae_cli.fetching import fetch
from stmae_data.errors import Reason

__all__ = ["app", "main"]

app = console.make_app(
    "Turn video into verified WebDataset shard sets, prove that no training clip leaks into an evaluation set, and keep every clip's story.",
    order=(
        "demo",
        "fetch",
        "build",
        "fingerprint",
        "dedup",
        "leaks",
        "select",
        "remove",
        "verify",
        "stats",
        "show",
        "diff",
        "sql",
    ),
)
catalog_app = console.make_app("The catalogue, a cache over all ledgers.")
app.add_typer(catalog_app, name="catalog")
app.add_typer(publishing.app)  # without a name: its commands stand beside those below
app.add_typer(removal.app)

HERE = Path()


@console.command(app, "demo")
def demo(
    directory: Annotated[Path, typer.Argument(help="Where the small world is written.")],
    seed: Annotated[int, typer.Option(help="Everything drawn comes from this seed.")] = 0,
    scale: Annotated[float, typer.Option(help="Share of the full small world, in (0, 1].")] = 1.0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    is_json: JsonFlag = False,
) -> None:
    """Render the small world to try everything on.

    Real encoded videos in official layouts, with planted leaks, duplicates and broken files.

    Example: stmae-data demo world --scale 0.1
    """
    from stmae_data.demo import render_world

    with console.journal(directory, "stmae-data demo", {"seed": seed, "scale": scale}), console.progress() as progress:
        summary = render_world(directory, seed=seed, scale=scale, workers=workers, progress=progress)
    if is_json:
        console.print_json(summary.as_json())
    console.done("The small world stands in", directory, is_json=is_json)


console.command(app, "fetch")(fetch)
console.command(app, "build")(build)


@console.command(app, "dedup")
def dedup(
    sets: Annotated[list[str] | None, typer.Argument(help="Sets; every set of the workspace unless given.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="Evaluation sets (SET:SPLIT) to keep clean.")] = None,
    level: Annotated[list[str] | None, typer.Option(help="bytes, stream, id, video, overlap, content.")] = None,
    policy: Annotated[Path | None, typer.Option(help="TOML file: thresholds, pairs told apart, filters.")] = None,
    to: Annotated[
        str | None, typer.Option(help="Write the cleaned set under this name; the old one stays as it is.")
    ] = None,
    review: Annotated[
        bool, typer.Option("--review", help="Also write review.html: the pairs side by side, and why each goes.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go; change no set; exit 3 if anything would.")
    ] = False,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Find duplicates and leaks, decide with evidence, apply.

    What is found is shown first; decisions are written before anything changes.

    Example: stmae-data dedup k700 --against k400:val --to k700-clean
    """
    from stmae_data.dedup import DedupReport
    from stmae_data.dedup import dedup as run

    def show(found: DedupReport) -> None:
        progress.close()
        console.table("Duplicates and leaks", *found.as_table(), is_json=is_json)
        if found.as_histogram()[1]:
            console.table("Level content: median distance of pairs", *found.as_histogram(), is_json=is_json)
        if review:
            from stmae_data.report import render_review

            console.say(f"Review: {render_review(workspace, found, workspace / 'review.html')}")

    with (
        console.journal(workspace, "stmae-data dedup", {"sets": sets, "to": to, "dry_run": dry_run}),
        console.progress() as progress,
    ):
        report = run(
            workspace,
            tuple(sets or ()),
            against=tuple(against or ()),
            levels=tuple(level) if level else None,
            policy=policy,
            to=to,
            dry_run=dry_run,
            show=show,
            progress=progress,
        )
    if is_json:
        console.print_json(report.as_json())
    console.done(report.closing_line(), None, is_json=is_json)
    raise typer.Exit(3 if dry_run and report.would_act else 0)


@console.command(app, "leaks")
def leaks(
    train: Annotated[list[str], typer.Argument(help="Training sets, selections or bare annotation tables.")],
    against: Annotated[list[str], typer.Option(help="Evaluation sets (SET:SPLIT) or bare annotation tables.")],
    level: Annotated[list[str] | None, typer.Option(help="bytes, stream, id, video, overlap, content.")] = None,
    policy: Annotated[Path | None, typer.Option(help="TOML file with thresholds.")] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write decisions and take the leaking clips out of the training sets.")
    ] = False,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Count what training data shares with evaluation data.

    At every level of sameness; exit 3 when anything is shared.

    Example: stmae-data leaks k700 --against k400:val
    """
    from stmae_data.dedup import leaks as run

    written = console.journal(workspace, "stmae-data leaks", {"train": train, "against": against, "fix": fix})
    with written if fix else contextlib.nullcontext(), console.progress() as progress:
        report = run(
            workspace,
            tuple(train),
            tuple(against),
            levels=tuple(level) if level else None,
            policy=policy,
            fix=fix,
            progress=progress,
        )
    if is_json:
        console.print_json(report.as_json())
    console.table("Leaks: distinct training clips / distinct evaluation clips", *report.as_table(), is_json=is_json)
    console.done(report.closing_line(), None, is_json=is_json)
    raise typer.Exit(3 if report.has_findings and report.fixed is None else 0)


@console.command(app, "select")
def select(
    selection: Annotated[str, typer.Argument(help="Name of the selection.")],
    source: Annotated[str, typer.Option("--from", help="SET[:SPLIT][/SELECTION] to choose from.")],
    where: Annotated[
        str | None, typer.Option(help="SQL condition over the ledger, as in signals['motion'] > 0.02")
    ] = None,
    hashtags_of: Annotated[
        str | None, typer.Option(help="Keep clips whose hashtags or titles name a class of this set.")
    ] = None,
    per_class: Annotated[int | None, typer.Option(help="At most this many of each class.")] = None,
    samples: Annotated[int | None, typer.Option(help="This many clips.")] = None,
    share: Annotated[float | None, typer.Option(help="This share, in (0, 1].")] = None,
    hours: Annotated[float | None, typer.Option(help="This many hours of video.")] = None,
    minus: Annotated[str | None, typer.Option(help="Leave out the clips of this reference.")] = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="Match the class shares (or the durations) of this reference; without --samples as many clips as keep them whole, which the "
            "scarcest class decides."
        ),
    ] = None,
    diverse: Annotated[
        bool, typer.Option("--diverse", help="Take the clips least like one another, by the set's embeddings.")
    ] = False,
    embedding: Annotated[
        str | None, typer.Option(help="Which embeddings (stmae-train embed), where there are several.")
    ] = None,
    max_cosine: Annotated[
        float | None, typer.Option(help="Stop where every clip left is at least this like one that was taken.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Smaller selections of one seed are inside larger ones.")] = 0,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Name a part of a set; nothing is copied.

    A selection is immutable and digested, and selections of one seed nest.

    Example: stmae-data select clean --from web --where "signals['motion'] > 0.02" --samples 240000
    """
    from stmae_data.records import SetRef
    from stmae_data.select import make_selection

    with console.journal(workspace, "stmae-data select", {"selection": selection, "from": source}):
        made = make_selection(
            workspace,
            selection,
            source=SetRef.parse(source),
            where=where,
            hashtags_of=hashtags_of,
            per_class=per_class,
            samples=samples,
            share=share,
            hours=hours,
            minus=SetRef.parse(minus) if minus else None,
            like=SetRef.parse(like) if like else None,
            is_diverse=diverse,
            embedding=embedding,
            max_cosine=max_cosine,
            seed=seed,
        )
    if is_json:
        console.print_json(
            {"name": made.name, "digest": made.digest, "num_clips": made.num_clips, "seconds": made.seconds}
        )
    if hashtags_of is not None:
        from stmae_data.report import render_sample

        console.say(f"Sample to judge by eye: {render_sample(workspace, made.name)}")
    console.done(
        f"Selection {made.name}: {made.num_clips} clips, digest {made.digest[:12]}, in", made.path, is_json=is_json
    )


@console.command(app, "verify")
def verify(
    name: Annotated[str, typer.Argument(metavar="SET", help="The set.")],
    quick: Annotated[bool, typer.Option("--quick", help="Sizes and presence only.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also compare the fast reader with a full decode on a sample.")
    ] = False,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Check every invariant of a set.

    Exit 4 with a code for each damage.

    Example: stmae-data verify k400
    """
    from stmae_data.verify import verify as run

    report = run(workspace, name, quick=quick, deep=deep)
    if is_json:
        console.print_json(report.as_json())
    if report.damages:
        rows = [[damage.code, damage.file, damage.detail] for damage in report.damages]
        console.table(f"Damage in {name}", ["code", "file", "detail"], rows, is_json=is_json)
    word = "is whole" if report.ok else f"has {len(report.damages)} damages"
    console.done(f"Set {name} {word}: {report.bytes:,} bytes read in {report.seconds:.2f} s", None, is_json=is_json)
    raise typer.Exit(0 if report.ok else 4)


@console.command(app, "stats")
def stats(
    name: Annotated[str, typer.Argument(metavar="SET", help="The set.")],
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Count what a set holds and what was rejected, by reason.

    Example: stmae-data stats k400
    """
    from stmae_data.catalog import stats as run

    found = run(workspace, name)
    if is_json:
        console.print_json(found.as_json())
        return
    console.facts(f"Set {name}", found.as_json())


@console.command(app, "show")
def show(
    clip: Annotated[str, typer.Argument(help="A clip id.")],
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Tell the whole story of a clip.

    Source, bytes, outcome, decisions, shard and offset, runs that read it. Put -- before an id that begins with -.

    Example: stmae-data show -- -3B32lodo2M_000059_000069
    """
    from stmae_data.catalog import show_clip

    story = show_clip(workspace, clip)
    if is_json:
        console.print_json(story.as_json())
        return
    console.table(f"Clip {clip}", *story.as_table())
    console.say("Every column of its rows: --json")


@console.command(app, "diff")
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A set.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another set.")],
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Say what differs between two sets.

    By clip, class, hours and source, with how they were made.

    Example: stmae-data diff k700 k700-clean
    """
    from stmae_data.catalog import diff as run

    found = run(workspace, first, second)
    if is_json:
        console.print_json(found.as_json())
        return
    console.table(f"{first} and {second}", *found.as_table())


@console.command(app, "sql")
def sql(
    query: Annotated[str, typer.Argument(help="One SELECT over the tables clip, written, annotation, tag, …")],
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Ask the ledgers in SQL.

    The connection can read nothing else and write nothing.

    Example: stmae-data sql "SELECT set_name, outcome, count(*) FROM clip GROUP BY ALL"
    """
    from stmae_data.catalog import locked_select

    answer = locked_select(workspace, query)
    if is_json:
        console.print_json([dict(zip(answer.columns, row, strict=True)) for row in answer.rows])
        return
    console.table(f"{len(answer.rows)} rows", answer.columns, answer.rows)


@console.command(app, "report")
def report(
    name: Annotated[str, typer.Argument(metavar="SET", help="The set.")],
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Write one HTML page about a set.

    Self-contained: thumbnails, classes, durations, outcomes, leaks.

    Example: stmae-data report k400
    """
    from stmae_data.report import render_report

    with console.journal(workspace, "stmae-data report", {"set": name}):
        path = render_report(workspace, name)
    if is_json:
        console.print_json({"set": name, "report": str(path)})
    console.done("Report:", path, is_json=is_json)


@console.command(catalog_app, "rebuild")
def catalog_rebuild(workspace: WorkspaceOption = HERE, is_json: JsonFlag = False) -> None:
    """Rebuild catalog.duckdb from all ledgers.

    Example: stmae-data catalog rebuild
    """
    from stmae_data.catalog import rebuild_catalog

    summary: Any = rebuild_catalog(workspace)
    if is_json:
        console.print_json(summary.as_json())
    console.done("Catalogue:", summary.path, is_json=is_json)


def main() -> None:
    """Entry point of `stmae-data`."""
    lists = ("--from", "--annotations", "--split", "--classes", "--against", "--level", "--retry-failed", "--port")
    arguments = console.fill_optional(sys.argv[1:], options={"--retry-failed": frozenset(Reason)})
    listed = (*lists, *removal.LISTS)
    app(console.expand_lists(arguments, options=listed, needs_position=("fetch", "build", "leaks", "select")))


if __name__ == "__main__":
    main()
