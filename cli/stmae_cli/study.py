"""`stmae-train study`: plan, run and report studies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stmae_cli import console
from stmae_cli.console import JsonFlag, WorkspaceOption

if TYPE_CHECKING:
    from stmae_train.study import CellEvent

__all__ = ["study_app"]

study_app = console.make_app("Studies of what data does to a fixed training.")

HERE = Path()

WorkersOption = Annotated[int, typer.Option(help="Decoding processes; they change speed alone.")]


@study_app.callback()
def study() -> None:
    """Plan, run and report studies."""


ScaleOption = Annotated[str | None, typer.Option(help="One scale of the study file; all of them unless given.")]
OnlyOption = Annotated[list[str] | None, typer.Option(help="Only these cells, as in arm=web,seed=0.")]
StudyArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="A study file, or the name of a shipped one (demo).")
]


def _study_file(name: str) -> Path:
    from importlib.resources import files

    shipped = Path(str(files("stmae_manifests.studies"))) / f"{name}.toml"
    return shipped if shipped.is_file() and not Path(name).is_file() else Path(name)


@console.command(study_app, "plan")
def study_plan(
    file: StudyArgument,
    scale: ScaleOption = None,
    only: OnlyOption = None,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Expand a study into cells; run nothing.

    With reuse, leaks and the smallest difference it can detect.

    Example: stmae-train study plan demo --scale study -w demo
    """
    from stmae_train.study import parse_only
    from stmae_train.study import study_plan as run

    plan = run(_study_file(file), workspace, scale=scale, only=parse_only(only or []))
    if is_json:
        console.print_json(plan.as_json())
    rows = [[cell.id[:10], cell.arm, cell.task or "pretrain", cell.clips, cell.seed] for cell in plan.cells]
    console.table(
        f"Study {plan.name}: {len(rows)} cells", ["id", "arm", "task", "clips", "seed"], rows, is_json=is_json
    )
    shared = [
        [leak.arm, leak.train, leak.test, leak.num_evaluation_clips, ", ".join(leak.not_comparable)]
        for leak in plan.leaks
    ]
    console.table("Leaks", ["arm", "train", "test", "leaked test clips", "not comparable"], shared, is_json=is_json)
    smallest = [
        [scale.name, task.name, f"{100 * plan.detectable(scale.name, task.name):.1f}"]
        for scale in plan.scales
        for task in plan.file.tasks
        if scale.name in task.scales
    ]
    console.table(
        "Smallest difference found with 80 % power", ["scale", "task", "points of top-1"], smallest, is_json=is_json
    )


@console.command(study_app, "run")
def study_run(
    file: StudyArgument,
    scale: ScaleOption = None,
    only: OnlyOption = None,
    workers: WorkersOption = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, run nothing.")] = False,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Run what is not done yet.

    Several processes may work on one study.

    Example: stmae-train study run demo --scale demo -w demo
    """
    from stmae_train.study import parse_only
    from stmae_train.study import study_run as run

    label = ""

    def tell(event: "CellEvent") -> None:
        nonlocal label
        label = f"{event.cell.arm} {event.cell.task or 'pretrain'} s{event.cell.seed}"
        progress.close()
        console.say(str(event))

    with (
        console.journal(workspace, "stmae-train study run", {"file": file, "scale": scale}),
        console.progress() as progress,
    ):
        summary = run(
            _study_file(file),
            workspace,
            scale=scale,
            only=parse_only(only or []),
            workers=workers,
            dry_run=dry_run,
            on_event=tell,
            watch=lambda record: progress(label, record.step, record.steps),
        )
    if is_json:
        console.print_json(
            {
                "cells": summary.cells,
                "done": summary.done,
                "reused": summary.reused,
                "busy": summary.busy,
                "waiting": summary.waiting,
            }
        )
    console.done(
        f"{summary.cells} cells: {summary.done} done now, {summary.reused} stood already, {summary.busy} busy, {summary.waiting} waiting; in",
        summary.folder,
        is_json=is_json,
    )


@console.command(study_app, "status")
def study_status(
    file: StudyArgument,
    scale: ScaleOption = None,
    only: OnlyOption = None,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Show the state of every cell.

    Example: stmae-train study status demo -w demo
    """
    from stmae_train.study import parse_only
    from stmae_train.study import study_status as run

    found = run(_study_file(file), workspace, scale=scale, only=parse_only(only or []))
    rows = [[cell.id[:10], cell.arm, cell.task or "pretrain", cell.clips, cell.seed, state] for cell, state in found]
    if is_json:
        console.print_json(
            [dict(zip(("id", "arm", "task", "clips", "seed", "state"), row, strict=True)) for row in rows]
        )
        return
    console.table("Cells", ["id", "arm", "task", "clips", "seed", "state"], rows)


@console.command(study_app, "report")
def study_report(
    file: StudyArgument,
    scale: ScaleOption = None,
    truth: Annotated[
        Path | None, typer.Option(help="truth.json of the small world, to hold dedup and the build against.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Where the page goes; the study's folder unless given.")] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json-to", help="Also write the study's facts to this file.")
    ] = None,
    summary: Annotated[Path | None, typer.Option(help="Also write the small world's summary to this file.")] = None,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Compare the arms; write page, tables and figures.

    Example: stmae-train study report demo -w demo --truth demo/truth.json --html demo/report.html
    """
    from stmae_train.study import study_json
    from stmae_train.study import study_report as run

    made = run(_study_file(file), workspace, scale=scale, truth=truth, html=html, json_path=json_path, summary=summary)
    facts = study_json(made.results)
    if is_json:
        console.print_json(facts)
    pairs = [
        [
            pair["task"],
            pair["arm"],
            pair["baseline"],
            _points(pair["delta"]),
            _points(pair["low"]),
            _points(pair["high"]),
            pair["verdict"],
        ]
        for pair in facts["pairs"]
    ]
    columns = ["task", "arm", "baseline", "difference", "low", "high", "verdict"]
    console.table("Differences in points of top-1", columns, pairs, is_json=is_json)
    console.done("Report:", made.html, is_json=is_json)


def _points(share: float | None) -> str:
    return "n/a†" if share is None else f"{100 * share:+.1f}"
