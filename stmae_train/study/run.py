"""Run the cells of a study: claim, train or measure, leave finished ones alone.

Every cell is an ordinary run folder. Its lock is the claim, so several processes and machines can work on one study; its
`run.json` says whether it is done, so a rerun picks up what is missing and a killed training goes on from its checkpoint.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stmae_train.errors import RunBusy, StudyError
from stmae_train.runlog import commit, runs_status
from stmae_train.study.doors import Doors, PictureJob, PretrainJob, TaskJob, standard_doors
from stmae_train.study.plan import Cell, StudyPlan, plan_csv, study_plan

__all__ = [
    "CellEvent",
    "RunSummary",
    "cell_hours",
    "cell_state",
    "draw_pictures",
    "run_plan",
    "study_run",
    "study_status",
    "write_plan",
]


@dataclass(frozen=True, slots=True)
class CellEvent:
    """What just happened to one cell; `number` of `total` counts from 1."""

    cell: Cell
    number: int
    total: int
    what: str
    """`started`, `done`, `reused`, `busy` (another process runs it) or `waiting` (what it needs is not done)."""
    seconds: float = 0.0

    def __str__(self) -> str:
        what = f"{self.what} in {self.seconds:.0f}s" if self.what == "done" else self.what
        kind = self.cell.task or "pretrain"
        return f"cell {self.number:3d}/{self.total} | {self.cell.arm} | {kind} | {self.cell.clips} clips | seed {self.cell.seed} | {what}"


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a `study run` ended; `busy` cells belong to other processes, `waiting` ones need those."""

    folder: Path
    cells: int
    done: int
    reused: int
    busy: int
    waiting: int
    seconds: float

    @property
    def is_complete(self) -> bool:
        """Whether every cell that was asked for is done."""
        return self.done + self.reused == self.cells


def study_run(
    file: Path,
    workspace: Path,
    *,
    scale: str | None = None,
    only: Mapping[str, Collection[str]] | None = None,
    workers: int = 0,
    checkpoint_every: int | None = None,
    dry_run: bool = False,
    doors: Doors | None = None,
    on_event: Callable[[CellEvent], None] | None = None,
    watch: Callable[[Any], None] | None = None,
) -> RunSummary:
    """Plan a study and run what is not done yet.

    Args:
        file: the study file.
        workspace: its workspace.
        scale: one scale; None runs every scale of the file.
        only: as in `study_plan`.
        workers: loader processes of every training.
        checkpoint_every: steps between checkpoints; None leaves it to the trainer.
        dry_run: count, run nothing.
        doors: the rooms it calls; the real ones unless given.
        on_event: called before and after every cell.
        watch: called with every record that a training logs (`runlog.StepRecord`).

    Raises:
        StudyError: the study cannot be planned.
        StmaeTrainError: a cell failed; what is done stays done.
    """
    doors = doors or standard_doors()
    plan = study_plan(file, workspace, scale=scale, only=only, doors=doors)
    if not dry_run:
        write_plan(plan)
    return run_plan(
        plan,
        doors=doors,
        workers=workers,
        checkpoint_every=checkpoint_every,
        dry_run=dry_run,
        on_event=on_event,
        watch=watch,
    )


def run_plan(
    plan: StudyPlan,
    *,
    doors: Doors,
    workers: int = 0,
    checkpoint_every: int | None = None,
    dry_run: bool = False,
    on_event: Callable[[CellEvent], None] | None = None,
    watch: Callable[[Any], None] | None = None,
) -> RunSummary:
    """Run the cells of a plan in its order; cells that others hold are tried once more at the end."""
    started = time.monotonic()
    counts = {"done": 0, "reused": 0, "busy": 0, "waiting": 0}
    cells = list({cell.id: cell for cell in plan.cells}.values())
    queue = [(number, cell, True) for number, cell in enumerate(cells, start=1)]
    while queue:
        number, cell, may_retry = queue.pop(0)

        def tell(what: str, seconds: float = 0.0, *, number: int = number, cell: Cell = cell) -> None:
            if on_event is not None:
                on_event(CellEvent(cell, number, len(cells), what, seconds))

        if runs_status(cell.folder) == "done":
            outcome = "reused"
            if not dry_run:
                draw_pictures(plan, cell, doors)
        elif dry_run or (cell.needs and runs_status(plan.cell(cell.needs).folder) != "done"):
            outcome = "waiting"
        else:
            tell("started")
            begun = time.monotonic()
            outcome = _run_cell(plan, cell, doors, workers=workers, checkpoint_every=checkpoint_every, watch=watch)
            if outcome == "done":
                draw_pictures(plan, cell, doors)
                counts["done"] += 1
                tell("done", time.monotonic() - begun)
                continue
        if outcome in ("busy", "waiting") and may_retry and not dry_run:
            queue.append((number, cell, False))
            continue
        counts[outcome] += 1
        tell(outcome)
    return RunSummary(plan.folder, len(cells), **counts, seconds=time.monotonic() - started)


def _run_cell(
    plan: StudyPlan,
    cell: Cell,
    doors: Doors,
    *,
    workers: int,
    checkpoint_every: int | None,
    watch: Callable[[Any], None] | None,
) -> str:
    """Run one cell to its end: `done`, or `busy` when another process holds it."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    try:
        if cell.is_pretraining:
            doors.pretrain(
                PretrainJob(
                    workspace=plan.workspace,
                    shards=plan.arm(cell.arm).shards,
                    recipe=plan.recipes[cell.scale, ""],
                    run_dir=cell.folder,
                    seed=cell.seed,
                    clips=cell.clips,
                    workers=workers,
                    checkpoint_every=checkpoint_every,
                    # On an empty folder this is a fresh start; on a killed one it goes on from the last checkpoint.
                    resume=True,
                    watch=watch,
                )
            )
        else:
            task = plan.file.task(cell.task)
            init = (
                str(plan.cell(cell.needs).folder / "weights.safetensors")
                if cell.needs
                else plan.arm(cell.arm).spec.init
            )
            doors.run_task(
                TaskJob(
                    workspace=plan.workspace,
                    init=init or "random",
                    train_shards=task.train,
                    eval_shards=task.test,
                    kind=task.kind,
                    recipe=plan.recipes[cell.scale, cell.task],
                    run_dir=cell.folder,
                    seed=cell.seed,
                    workers=workers,
                    watch=watch,
                )
            )
    except RunBusy:
        return "busy"
    if runs_status(cell.folder) != "done":
        raise StudyError(
            f"Cell {cell.id} ({cell.arm}, {cell.task or 'pretrain'}, seed {cell.seed}) ended without being done; "
            f"look into {cell.folder / 'run.json'}, then run the study again."
        )
    facts = {"arm": cell.arm, "scale": cell.scale, "clips": cell.clips, "seed": cell.seed, "task": cell.task}
    _write_json(cell.folder / "cell.json", {"schema_version": 1, "id": cell.id, "needs": cell.needs, **facts})
    return "done"


def draw_pictures(plan: StudyPlan, cell: Cell, doors: Doors) -> None:
    """Draw reconstructions if this cell is the first seed's longest pre-training of its arm and has none yet.

    Models whose target is no pixels have none.
    """
    # A run draws its own training clips; a report compares arms on the same held-out ones.
    folder = cell.folder / "pictures" / "test"
    scale, model = plan.file.scale(cell.scale), plan.recipes[cell.scale, ""].model
    is_shown = cell.is_pretraining and (cell.seed, cell.clips) == (scale.seeds[0], scale.clips[-1])
    if not is_shown or not plan.tests or model.target == "hog" or (folder / "captions.json").is_file():
        return
    doors.draw_pictures(
        PictureJob(
            workspace=plan.workspace,
            weights=cell.folder / "weights.safetensors",
            shards=next(iter(plan.tests.values())).reference,
            out=folder,
            ratios=tuple(sorted({model.mask_ratio, 0.9})),
        )
    )


def cell_state(cell: Cell) -> str:
    """`planned`, `running`, `stopped` (killed or failed: a rerun goes on) or `done`."""
    status = runs_status(cell.folder)
    if status is None or status == "done":
        return status or "planned"
    return "running" if _is_held(cell.folder / "LOCK") else "stopped"


def _is_held(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def cell_hours(plan: StudyPlan) -> dict[str, float]:
    """Hours per cell id, measured where done, else estimated from done cells of the same kind; unknown ones are absent."""
    spent: dict[str, float] = {}
    rates: dict[tuple[str, str], list[float]] = {}
    for cell in plan.cells:
        path = cell.folder / "cost.json"
        if runs_status(cell.folder) == "done" and path.is_file():
            cost: Mapping[str, Any] = json.loads(path.read_bytes())
            seconds = float(cost.get("seconds") or cost.get("gpu_seconds") or 0.0)
            spent[cell.id] = seconds / 3600
            rates.setdefault((cell.scale, cell.task), []).append(seconds / (cell.clips if cell.is_pretraining else 1))
    for cell in plan.cells:
        known = rates.get((cell.scale, cell.task))
        if cell.id not in spent and known:
            seconds = sum(known) / len(known) * (cell.clips if cell.is_pretraining else 1)
            spent[cell.id] = seconds / 3600
    return spent


def study_status(
    file: Path,
    workspace: Path,
    *,
    scale: str | None = None,
    only: Mapping[str, Collection[str]] | None = None,
    doors: Doors | None = None,
) -> list[tuple[Cell, str]]:
    """Every planned cell with its state, in running order."""
    plan = study_plan(file, workspace, scale=scale, only=only, doors=doors)
    return [(cell, cell_state(cell)) for cell in plan.cells]


def write_plan(plan: StudyPlan) -> Path:
    """Write study.toml, study.lock.json and plan.csv into the study's folder; returns the path of plan.csv."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    states = {cell.id: cell_state(cell) for cell in plan.cells}
    lock = {
        "schema_version": 1,
        "study": plan.file.name,
        "code_version": plan.code_version,
        "scales": [scale.name for scale in plan.scales],
        "arms": {
            arm.name: [
                {
                    "reference": each.reference,
                    "digest": each.set_digest,
                    "selection_digest": each.selection_digest,
                    "clips": each.num_clips,
                }
                for each in arm.data
            ]
            for arm in plan.arms
        },
        "tests": {
            task: {"reference": facts.reference, "digest": facts.set_digest} for task, facts in plan.tests.items()
        },
        "leaks": [
            {
                "arm": leak.arm,
                "train": leak.train,
                "test": leak.test,
                "levels": leak.levels,
                "evaluation_clips": leak.num_evaluation_clips,
            }
            for leak in plan.leaks
        ],
    }
    _write_text(plan.folder / "study.toml", plan.file.text)
    _write_json(plan.folder / "study.lock.json", lock)
    _write_text(plan.folder / "plan.csv", plan_csv(plan, states, cell_hours(plan)))
    return plan.folder / "plan.csv"


def _write_json(path: Path, value: Any) -> None:
    _write_text(
        path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False, default=dict) + "\n"
    )


def _write_text(path: Path, text: str) -> None:
    with commit(path) as stream:
        stream.write(text.encode())
